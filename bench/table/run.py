"""One shape of the table: its checkpoint, its contenders and servers, and all of its cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import torch
from bench.gpu.shapes import GPUShape, write_checkpoint
from bench.table import served
from bench.table.entries import Entry
from bench.table.offline import PROBE, Contest, Say
from bench.table.plan import LOADS, TABLE_SHAPES, Budget, Cell, Load, tiny
from bench.table.process import Failed
from bench.table.report import Report

CONVERSION = 0.4  # of a shape's time, at most, for each library
COPIES = 0.8  # of the weights in fp32 for each contender: the formats have 0.25 to 1.5
PROCESS = 300 * 2**20  # bytes of a process without weights
NO_TIME = "its share of --minutes was too short"


@dataclass(frozen=True)
class Setting:
    """The settings of a run."""

    budget: Budget
    entries: Sequence[Entry]
    threads: int
    infinity: str | None
    is_tiny: bool
    log: IO[bytes]
    say: Say


def run_shape(key: str, cells: Sequence[Cell], folder: Path, setting: Setting, report: Report) -> None:
    """Measure the cells of one shape, and record the results or why there are none."""
    found = TABLE_SHAPES[key]
    shape = tiny(found) if setting.is_tiny else found
    report.shapes[key] = shape.name
    weights = 4 * shape.layers * sum(i * o for i, o in shape.sizes)
    needed = len(setting.entries) * (PROCESS + COPIES * weights)
    if needed > psutil.virtual_memory().available:
        for cell in cells:
            report.left_out[cell.name] = f"its contenders need about {needed / 2**30:.0f} GiB of free memory"
            setting.budget.done(cell)
        return
    ours = [entry for entry in setting.entries if entry.library == "ours"]
    setting.say(f"{shape.name}: writing a checkpoint with random weights …")
    directory = folder / "model"
    write_checkpoint(shape, directory, "cpu", torch.float32)
    _name_tokenizer(directory)
    seconds = setting.budget.share(cells)
    # without rows of the engine, the contest only finds the time of a document
    needed_entries = setting.entries if any(cell.kind == "engine" for cell in cells) else ours
    contest = Contest(shape, key, needed_entries, setting.is_tiny, setting.say)
    try:
        contest.start(directory, folder, setting.threads, setting.log, seconds * CONVERSION)
        for cell in cells:
            if cell.kind == "engine":
                _engine(cell, contest, setting, report)
        slowest = max((contest.cost[e.label] for e in ours if e.label in contest.cost), default=1.0)
    finally:
        contest.close()
    for cell in cells:
        if cell.kind == "http":
            _http(cell, shape, directory, slowest, setting, report)


def _name_tokenizer(directory: Path) -> None:
    """Name the class of a generic tokenizer as transformers 4 did, which infinity requires; 5 reads both."""
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(settings), encoding="utf-8")


def _engine(cell: Cell, contest: Contest, setting: Setting, report: Report) -> None:
    load = LOADS[cell.load]
    seconds = setting.budget.share([cell])
    try:
        report.engine.append(contest.measure(cell, load, seconds, _relative_length(load, contest.shape)))
    except Failed as failure:
        report.left_out[cell.name] = str(failure)
    setting.budget.done(cell)


def _relative_length(load: Load, shape: GPUShape) -> float:
    """Return the words of a document in relation to those of the probe; a longer one is cut at 512 tokens."""
    words = [min(len(text.split()), 400) for text in load.texts(shape)[:PROBE]]
    probe = [len(text.split()) for text in Load("probe", PROBE).texts(shape)]
    return sum(words) / len(words) / (sum(probe) / len(probe))


def _http(
    cell: Cell, shape: GPUShape, directory: Path, slowest: float, setting: Setting, report: Report
) -> None:
    absent: dict[str, str] = {}
    load = LOADS[cell.load]
    setting.say(f"{cell.name}: starting servers …")
    with served.servers(
        setting.entries, directory, setting.threads, setting.log, setting.infinity, absent
    ) as found:
        seconds = setting.budget.share([cell])
        texts = load.texts(shape)
        bounds = served.TINY_PHASE if setting.is_tiny else served.PHASE
        result = served.measure(cell, load, texts, found, seconds, slowest, bounds, setting.say)
    setting.budget.done(cell)
    if result:
        result.absent = absent
        report.served.append(result)
    else:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in absent.items())
        report.left_out[cell.name] = NO_TIME if found else f"no server was started ({reasons})"
