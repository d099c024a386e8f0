"""Every family of the tests on the device against the CPU in fp32, and where its passes wait for the device."""

from __future__ import annotations

import random
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.gpu.clock import Clock

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, ScoreTexts

LENGTHS = (0, 1, 7, 15, 16, 17, 47, 49, 90, 130)  # words: around the bounds of slots
QUESTION = "how do stars burn hydrogen"
LOOSE = 10  # times the tolerance of the tests, in fp32: other kernels sum in another order


def parity(device: str, clock: Clock, until_left: float, most: int | None = None) -> dict[str, Any]:
    """Compare the families, at most `most`, until only `until_left` seconds of the clock are left."""
    from support.checkpoints.cross_encoders import random_text
    from support.families.every import EVERY

    rng = random.Random(5)
    found: dict[str, Any] = {}
    for name, family in list(EVERY.items())[:most]:
        if clock.left < until_left:
            found[name] = {"error": "not reached"}
            continue
        texts = [random_text(rng, words) for words in LENGTHS]
        found[name] = compared(family, texts, device)
        print(f"{'ok  ' if fine(found[name]) else 'LOOK'} {name}: {found[name]}", flush=True)
    return found


def fine(line: dict[str, Any]) -> bool:
    """Return whether a family agrees in fp32 and runs in bf16."""
    return isinstance(line.get("bfloat16"), float) and line.get("float32", np.inf) <= line["allowed"]


def compared(family: Any, texts: list[str], device: str) -> dict[str, Any]:
    """Return the largest differences from fp32 on a CPU, by dtype, and where a bf16 pass waits for the device."""
    line: dict[str, Any] = {"allowed": LOOSE * family.tolerance}
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = family.make(Path(folder))

            def engine(where: str, dtype: str) -> Engine:
                return Engine(
                    made.served,
                    device=where,
                    dtype=dtype,
                    template=made.template,
                    max_seq_length=family.limit,
                )

            expected = answers(engine("cpu", "float32"), texts, family.limit)
            for dtype in ("float32", "bfloat16"):
                tested = engine(device, dtype)
                line[dtype] = distance(answers(tested, texts, family.limit), expected)
            if device == "cuda":
                line["waits"] = waits(tested, texts, family.limit)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        line["error"] = (
            f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
        )
    return line


def job_of(engine: Engine, texts: list[str], limit: int) -> Job:
    """Return the job of a request for scores, or for vectors if the model makes no scores."""
    if "score" in engine.spec.outputs:
        return engine.tokenize_score(ScoreTexts(QUESTION, texts, limit))
    name = "dense" if "dense" in engine.spec.outputs else engine.spec.outputs[-1]
    return engine.tokenize_encode(texts, (name,), limit)


def answers(engine: Engine, texts: list[str], limit: int) -> list[Any]:
    """Return the results of the texts as flat arrays in fp64."""
    job = job_of(engine, texts, limit)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        if work.index != QUERY:
            job.put(work.index, result)
    parts = [
        part for result in job.results for part in (result.values() if isinstance(result, dict) else [result])
    ]
    return [_flat(part) for part in parts]


def _flat(part: Any) -> Any:
    values = part.values if hasattr(part, "indices") else part  # of a sparse vector
    if not isinstance(values, np.ndarray | float | int | list):
        values = [float("nan")]  # a result of a block, which other tests compare
    return np.asarray(values, dtype=np.float64).ravel()


def distance(found: list[Any], expected: list[Any]) -> float:
    """Return the largest difference; infinite if shapes differ, as those of sparse vectors may in bf16."""
    pairs = list(zip(found, expected, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max((float(np.nanmax(np.abs(one - other), initial=0.0)) for one, other in pairs), default=0.0)


def waits(engine: Engine, texts: list[str], limit: int) -> str | None:
    """Return the first place at which a pass waits for the device; None: at no place."""
    works = job_of(engine, texts, limit).work
    engine.run(works)  # the first pass builds tables
    works = job_of(engine, texts, limit).work
    try:
        with errors_for_waits():
            engine.run(works)
    except RuntimeError as error:
        places = [f for f in traceback.extract_tb(error.__traceback__) if "sie_server" in f.filename]
        return f"{Path(places[-1].filename).name}:{places[-1].lineno} {places[-1].line}"
    return None


@contextmanager
def errors_for_waits() -> Iterator[None]:
    """Let torch raise an error where a call waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
