"""Pairs per second of the engine and of sentence-transformers on the same device, and the share of its peak."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench.gpu.clock import Clock, seconds_of
from bench.gpu.shapes import GPUShape, write_checkpoint
from bench.workload import QUERY, natural_texts

from sie_server.engine.calibration import calibrate
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts, Work

CHUNK = 256  # texts that a thread tokenises at once
THREADS = 4
ROUNDS = 3
LEAST_S = 12.0  # that a shape takes; a shape is not begun with less
SQUARE = 8192  # rows and columns of the product that rates a GPU


def product_rate(device: str, size: int) -> float:
    """Return the operations per second of a large product in bf16, the fastest of several runs."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds_of(lambda: one @ other, device) for _ in range(10)]
    return 2.0 * size**3 / min(times)


class Ours:
    """The engine on the texts of a request: tokenised in chunks on threads, and run in batches."""

    def __init__(self, directory: Path, device: str, texts: list[str]) -> None:
        self.engine = Engine(directory, device=device, dtype="bfloat16", max_seq_length=512)
        self.texts = texts
        self.works = self._tokenise(texts)

    @property
    def lengths(self) -> list[int]:
        """The tokens of the pairs."""
        return [len(work.tokens) for work in self.works]

    def _tokenise(self, texts: list[str]) -> list[Work]:
        return self.engine.tokenize_score(ScoreTexts(QUERY, texts, self.engine.max_seq_length)).work

    def from_tokens(self, batch_tokens: int) -> None:
        """Run all pairs, which are tokenised already, longest first."""
        for batch in batches(self.works, batch_tokens):
            self.engine.run(batch)

    def from_texts(self, batch_tokens: int) -> None:
        """Tokenise on threads and run each chunk as soon as it is ready."""
        chunks = [self.texts[start : start + CHUNK] for start in range(0, len(self.texts), CHUNK)]
        with ThreadPoolExecutor(THREADS) as threads:
            for works in threads.map(self._tokenise, chunks):
                for batch in batches(works, batch_tokens):
                    self.engine.run(batch)


def batches(works: list[Work], most: int) -> Iterator[list[Work]]:
    """Yield the works in order, in batches of at most `most` tokens and at least one work."""
    batch: list[Work] = []
    size = 0
    for work in works:
        if batch and size + len(work.tokens) > most:
            yield batch
            batch, size = [], 0
        batch.append(work)
        size += len(work.tokens)
    if batch:
        yield batch


def sentence_transformers(directory: Path, device: str, texts: list[str], batch: int) -> Callable[[], Any]:
    """Return `CrossEncoder.predict` in bf16 with SDPA, which sorts the pairs by length."""
    from sentence_transformers import CrossEncoder

    options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    model = CrossEncoder(str(directory), device=device, max_length=512, model_kwargs=options)
    pairs = [(QUERY, text) for text in texts]
    return lambda: model.predict(pairs, batch_size=batch, show_progress_bar=False)


def measure(
    shape: GPUShape, device: str, count: int, budgets: list[int], rival_batches: list[int], rate: float
) -> dict[str, Any]:
    """Measure one shape. Ours and theirs alternate; figures are those of the median round."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = natural_texts(count, shape.median_words)
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(shape, Path(folder), device)
        ours = Ours(directory, device, texts)
        calibrate(ours.engine, 0.5)
        chosen = ours.engine.batch_tokens
        runs: dict[str, Callable[[], Any]] = {}
        for budget in sorted({*budgets, chosen}):
            runs[f"ours, tokens of {budget}"] = lambda budget=budget: ours.from_tokens(budget)
        runs[f"ours, texts of {chosen}"] = lambda: ours.from_texts(chosen)
        for batch in rival_batches:
            name = f"sentence-transformers, {batch} pairs"
            runs[name] = sentence_transformers(directory, device, texts, batch)
        seconds = alternate(runs, device)
    flops = shape.flops(ours.lengths)
    return {
        "pairs": count,
        "tokens": sum(ours.lengths),
        "chosen batch": chosen,
        "activations MiB": round(ours.engine.activation_bytes / 2**20, 1),
        "published pairs/s": shape.published,
        "rows": {
            name: {
                "pairs/s": round(count / took, 1),
                "share of the product rate": round(flops / took / rate, 4),
            }
            for name, took in seconds.items()
        },
        "ratio": ratio(seconds),
    }


def ratio(seconds: dict[str, float]) -> float | None:
    """Return how many times faster ours is from texts than the fastest row of sentence-transformers."""
    ours = [took for name, took in seconds.items() if name.startswith("ours, texts")]
    theirs = [took for name, took in seconds.items() if name.startswith("sentence")]
    return round(min(theirs) / min(ours), 3) if ours and theirs else None


def alternate(runs: dict[str, Callable[[], Any]], device: str) -> dict[str, float]:
    """Return the median seconds of each run; every run is warmed up, then all alternate."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds_of(run, device))
    return {name: statistics.median(taken) for name, taken in times.items()}


def table(
    shapes: tuple[GPUShape, ...], device: str, clock: Clock, tiny: bool, until_left: float
) -> dict[str, Any]:
    """Measure the shapes until `until_left` seconds of the clock are left."""
    rate = product_rate(device, 256 if tiny else SQUARE)
    found: dict[str, Any] = {"product rate": rate, "shapes": {}}
    budgets, rivals, count = ([1024], [4], 12) if tiny else ([4096, 16384, 32768], [32, 128, 512], 4096)
    for shape in shapes:
        if clock.left < until_left + (0 if tiny else LEAST_S):
            found["shapes"][shape.name] = {"error": "not reached"}
            continue
        most = count if shape.layers * shape.width < 20_000 else max(12, count // 4)
        try:
            row = measure(shape, device, most, budgets, rivals, rate)
        except Exception as error:  # the other shapes are still measured
            row = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{shape.name}: {row}", flush=True)
        found["shapes"][shape.name] = row
    return found


def profile(shape: GPUShape, device: str, count: int) -> list[dict[str, Any]]:
    """Return the operators of one pass that take most time on the device."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(shape, Path(folder), device)
        ours = Ours(directory, device, natural_texts(count, shape.median_words))
        ours.from_tokens(16384)
        with profiled(activities=activities) as recorded:
            ours.from_tokens(16384)
    side = "device" if device == "cuda" else "cpu"
    events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, f"self_{side}_time_total"))
    return [
        {"operator": e.key, "ms": round(getattr(e, f"self_{side}_time_total") / 1e3, 3), "calls": e.count}
        for e in events[:15]
    ]
