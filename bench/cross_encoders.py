"""Cross-encoder speed on this CPU compared with other libraries, all in one run.

    python -m bench.cross_encoders                 # both shapes, 7 rounds
    python -m bench.cross_encoders --profile       # also print the time of each stage

The contenders alternate (A B C A B C …), so that noise affects all of them. Writes cross_encoders.json and .png.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from bench import contenders, machine, stages
from bench.comparison import FLOOR, OURS, Agreement, Report, Times, as_json, draw, show
from bench.contenders import BATCH_SIZES, Contender, Logits, Products
from bench.machine import Bystanders, Patience
from bench.rivals import onnx_runtime, openvino
from bench.workload import QUERY, SHAPES, UNIGRAM_VOCABULARY, Shape, natural_texts, write_checkpoint
from rich.console import Console

from sie_server.engine.calibration import calibrate
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.models.layers.int8.machine import problem

OUT = Path(__file__).resolve().parent / "out"
PAUSE = 0.05  # seconds between two runs, so that the threads of the first stop spinning
console = Console(width=None if Console().is_terminal else 140)


def alternate(
    runs: dict[str, Callable[[], Any]], rounds: int, patience: Patience, *, cpu_time: bool = False
) -> dict[str, Times]:
    """Warm up all contenders, then run each once per round."""
    times = {name: Times() for name in runs}
    with console.status("warming up …") as status:
        for run in runs.values():
            run()
        for done in range(rounds):
            status.update(f"round {done + 1} of {rounds} …")
            for name, run in runs.items():
                taken = run_undisturbed(run, patience)
                times[name].seconds.append(taken.own if cpu_time else taken.elapsed)
                times[name].others.append(round(taken.cores, 2))
    return times


def run_undisturbed(run: Callable[[], Any], patience: Patience) -> Bystanders:
    """Run once, and repeat a disturbed run within the limit of `patience`."""
    while True:
        time.sleep(PAUSE)
        with Bystanders() as taken:
            run()
        if not patience.again(taken):
            return taken


def measure(
    shape: Shape,
    directory: Path,
    documents: list[str],
    rounds: int,
    patience: float,
    batch_tokens: int,
    profile: bool,
    cpu_time: bool,
) -> Report:
    engine = Engine(directory, device="cpu")
    limit = Patience(patience)
    run_undisturbed(partial(calibrate, engine), limit)
    engine.batch_tokens = batch_tokens or engine.batch_tokens
    rivals = make_rivals(directory, documents)
    products = Products(shape, engine.dtype)
    runs: dict[str, Callable[[], Any]] = {
        OURS: lambda: contenders.ours(engine, documents),
        **integers(directory, documents, engine.batch_tokens),
        **{rival.name: rival.score for rival in rivals},
        FLOOR: products,
    }
    times = alternate(runs, rounds, limit, cpu_time=cpu_time)
    if profile:
        stages.show(console, shape.name, lambda: contenders.ours(engine, documents))
    work = engine.tokenize_score(ScoreTexts(QUERY, documents, engine.max_seq_length)).work
    lengths = [len(w.tokens) for w in work]
    found = agreement(directory, documents, engine, rivals[-1])
    return Report(shape, lengths, engine.batch_tokens, times, products.flops, found)


def integers(directory: Path, documents: list[str], batch_tokens: int) -> dict[str, Callable[[], Any]]:
    """Return ours in int8, if this machine has that format."""
    if problem(torch.device("cpu")):
        return {}
    engine = Engine(directory, device="cpu", dtype="int8")
    engine.batch_tokens = batch_tokens
    return {f"{OURS}, int8": lambda: contenders.ours(engine, documents)}


def make_rivals(directory: Path, documents: list[str]) -> list[Contender]:
    fp32, bf16 = torch.float32, torch.bfloat16
    others = []
    for rival in (openvino, onnx_runtime):
        if rival.installed():
            others += rival.contenders(directory, documents, 8)
        else:
            console.print(f"{rival.__name__.rpartition('.')[2]} is not compared: {rival.NEEDS}")
    return [
        *others,
        contenders.sentence_transformers(directory, documents, fp32, 32),
        *(contenders.sentence_transformers(directory, documents, bf16, size) for size in BATCH_SIZES),
        contenders.plain_transformers(directory, documents, bf16, 8),
    ]


def agreement(directory: Path, documents: list[str], engine: Engine, rival_bf16: Contender) -> Agreement:
    reference = contenders.plain_transformers(directory, documents, torch.float32, 8).score()
    rival = rival_bf16.score()
    ours_fp32 = contenders.ours(Engine(directory, device="cpu", dtype="float32"), documents)
    ours_bf16 = contenders.ours(engine, documents)
    return Agreement(
        spread=float(np.std(reference)),
        fp32=float(np.abs(ours_fp32 - reference).max()),
        bf16=float(np.abs(ours_bf16 - ours_fp32).max()),
        tau=kendall_tau(ours_bf16, ours_fp32),
        reference_bf16=float(np.abs(rival - reference).max()),
        reference_tau=kendall_tau(rival, reference),
    )


def kendall_tau(a: Logits, b: Logits) -> float:
    """Return (pairs in the same order − pairs in opposite order) / pairs."""
    upper = np.triu_indices(len(a), 1)
    return float(np.mean(np.sign(np.subtract.outer(a, a)[upper]) * np.sign(np.subtract.outer(b, b)[upper])))


@click.command()
@click.option(
    "--shapes", default=",".join(SHAPES), show_default=True, help="Comma-separated names of shapes."
)
@click.option("--rounds", type=click.IntRange(1, 100), default=7, show_default=True)
@click.option("--documents", type=click.IntRange(2, 2000), default=100, show_default=True)
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="CPU threads of all contenders; 0: torch's default."
)
@click.option(
    "--patience", default=120.0, show_default=True, help="Seconds per shape for repeating disturbed runs."
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(0),
    default=0,
    help="Tokens in our batches; 0: as calibrated on load.",
)
@click.option(
    "--cpu-time",
    is_flag=True,
    help="Compare the CPU time of one thread instead of elapsed time, on a machine that others use.",
)
@click.option("--profile", is_flag=True, help="Print our time by stage and by operator.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(
    shapes: str,
    rounds: int,
    documents: int,
    threads: int,
    patience: float,
    batch_tokens: int,
    cpu_time: bool,
    profile: bool,
    out: Path,
) -> None:
    """Score the same documents with all contenders and compare their times and logits."""
    unknown = set(shapes.split(",")) - set(SHAPES)
    if unknown:
        raise click.BadParameter(
            f"unknown {', '.join(unknown)}; known: {', '.join(SHAPES)}", param_hint="--shapes"
        )
    if cpu_time:
        threads, patience = 1, 0.0
    if threads:
        torch.set_num_threads(threads)
    contenders.quiet_libraries()
    about = machine.describe()
    console.print(
        f"{about['cpu']}, {about['cores']} cores, AMX {'yes' if about['amx_bf16'] else 'no'}, "
        f"torch {about['torch']} with {about['threads']} threads, load average {about['load_average']}\n"
        f"XLM-R has a vocabulary of {UNIGRAM_VOCABULARY:,} instead of 250,002, for all contenders"
    )
    reports = []
    for name in shapes.split(","):
        shape = SHAPES[name]
        texts = natural_texts(documents, shape.median_words)
        with tempfile.TemporaryDirectory() as folder:
            directory = write_checkpoint(shape, Path(folder))
            reports.append(
                measure(shape, directory, texts, rounds, patience, batch_tokens, profile, cpu_time)
            )
        show(console, reports[-1])
    write(about, reports, out)


def write(about: dict[str, Any], reports: list[Report], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "shapes": [as_json(report) for report in reports]}
    (out / "cross_encoders.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw(reports, out / "cross_encoders.png")
    console.print("\nwrote cross_encoders.json and cross_encoders.png")


if __name__ == "__main__":
    main()
