"""The cells of the engine: all contenders score the same documents in turn, each in its own process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.comparison import Times
from bench.gpu.shapes import GPUShape
from bench.table.entries import OURS, Entry
from bench.table.plan import Cell, Load
from bench.table.process import Failed, Worker

PROBE = 24  # documents of the first run, which decides batch sizes and the number of documents
ROUNDS = (2, 7)  # fewest and most, after one that warms up
PAUSE = 0.25  # seconds between two runs, so that the threads of the first stop spinning
SLOW = 4.0  # seconds of the first run, from which on no other batch sizes are tried
Say = Callable[[str], None]


@dataclass
class EngineResult:
    """One cell of the engine. `times`, `logits` and `memory` (MiB) have an entry per contender."""

    cell: Cell
    load: Load
    documents: int
    lengths: list[int]
    times: dict[str, Times]
    logits: dict[str, list[float]]
    memory: dict[str, float]
    batches: dict[str, int]
    flops: float
    product_rate: float  # operations per second; 0: not measured
    absent: dict[str, str] = field(default_factory=dict)  # contender → reason

    @property
    def floor(self) -> float:
        """Seconds that the arithmetic takes at the rate of the bf16 products alone."""
        return self.flops / self.product_rate if self.product_rate else float("nan")


class Contest:
    """The processes of all contenders for one shape."""

    def __init__(self, shape: GPUShape, key: str, entries: Sequence[Entry], is_tiny: bool, say: Say) -> None:
        self.shape, self._key, self._tiny, self._say = shape, key, is_tiny, say
        self._entries = entries
        self.workers: dict[str, Worker] = {}
        self.absent: dict[str, str] = {}
        self.batches: dict[str, int] = {}
        self.cost: dict[str, float] = {}  # seconds per token, of the probe

    def start(self, directory: Path, folder: Path, threads: int, log: IO[bytes], seconds: float) -> None:
        """Convert the model for rivals and load it in all processes, in at most `seconds` for each conversion."""
        texts = Load("probe", PROBE).texts(self.shape)
        entries = [entry for entry in self._entries if self._can_run(entry)]
        for converter in dict.fromkeys(entry.converter for entry in entries if entry.converter):
            self._say(f"{self.shape.name}: converting for {converter} …")
            try:
                _convert(converter, directory, folder, threads, log, texts, seconds)
            except Failed as failure:
                for entry in entries:
                    if entry.converter == converter and not (folder / entry.file).exists():
                        self.absent[entry.label] = f"conversion: {failure}"
        entries = [entry for entry in entries if entry.label not in self.absent]
        self._say(f"{self.shape.name}: loading {len(entries)} contenders …")
        self.workers = {
            entry.label: Worker(entry.label, directory, folder, threads, log) for entry in entries
        }
        for worker in self.workers.values():
            worker.send("load")
        for entry in entries:
            with self._dropped_on_failure(entry.label):
                self.workers[entry.label].answer()
                self._probe(entry, texts)

    def _can_run(self, entry: Entry) -> bool:
        if reason := entry.missing():
            self.absent[entry.label] = reason
        return not reason

    def _probe(self, entry: Entry, texts: list[str]) -> None:
        """Warm up, and choose the fastest batch size."""
        worker = self.workers[entry.label]
        worker.ask("documents", texts=texts)
        sizes = entry.batches[:1] if entry.library == "ours" else entry.batches
        worker.ask("batch", size=sizes[0])
        seconds = {sizes[0]: worker.ask("run")["seconds"]}
        if seconds[sizes[0]] < SLOW:
            for size in sizes:
                worker.ask("batch", size=size)
                seconds[size] = worker.ask("run")["seconds"]
        best = min(seconds, key=lambda size: seconds[size])
        worker.ask("batch", size=best)
        self.batches[entry.label] = 0 if entry.library == "ours" else best
        self.cost[entry.label] = seconds[best] / PROBE

    @contextmanager
    def _dropped_on_failure(self, label: str) -> Iterator[None]:
        try:
            yield
        except Failed as failure:
            self.absent[label] = str(failure)
            if worker := self.workers.pop(label, None):
                worker.close()

    def measure(self, cell: Cell, load: Load, seconds: float, relative_length: float) -> EngineResult:
        """Run the contenders in turn for about `seconds`, with fewer documents if that is too short for all.

        `relative_length` is the tokens of a document in relation to those of the probe.

        Raises:
            Failed: the time is too short for `load.least` documents, or there is no contender.
        """
        if not self.workers:
            raise Failed("no contender could be started")
        per_document = sum(self.cost[label] for label in self.workers) * relative_length
        pauses = PAUSE * (len(self.workers) + 1)
        rounds = ROUNDS[0] + 1
        documents = min(load.documents, int((seconds / rounds - pauses) / per_document))
        if documents < min(load.least, load.documents):
            minutes = rounds * (load.least * per_document + pauses) / 60
            raise Failed(
                f"{ROUNDS[0]} rounds of {load.least} documents take {minutes:.1f} minutes; its share of "
                f"--minutes was {seconds / 60:.1f}"
            )
        texts = load.texts(self.shape)[:documents]
        lengths: list[int] = []
        for label in list(self.workers):
            with self._dropped_on_failure(label):
                found = self.workers[label].ask("documents", texts=texts)["lengths"]
                lengths = lengths or found or []
        return self._rounds(cell, load, seconds, lengths, documents)

    def _rounds(
        self, cell: Cell, load: Load, seconds: float, lengths: list[int], documents: int
    ) -> EngineResult:
        for worker in self.workers.values():
            worker.peak_mib = 0.0
        end = time.monotonic() + seconds
        times: dict[str, Times] = {label: Times() for label in self.workers}
        rates: list[float] = []
        self._round({}, [])
        done, longest = 0, 0.0
        while done < ROUNDS[0] or (done < ROUNDS[1] and time.monotonic() + longest < end):
            start = time.monotonic()
            self._round(times, rates)
            longest = max(longest, time.monotonic() - start)
            done += 1
            self._say(f"{cell.name}: {documents} documents, round {done}")
        logits = {label: worker.ask("logits")["logits"] for label, worker in self.workers.items()}
        return EngineResult(
            cell,
            load,
            documents,
            lengths,
            {label: times[label] for label in self.workers},
            logits,
            {label: worker.peak_mib for label, worker in self.workers.items()},
            dict(self.batches),
            self.shape.flops(lengths),
            max(rates, default=0.0),
            dict(self.absent),
        )

    def _round(self, times: dict[str, Times], rates: list[float]) -> None:
        for label in list(self.workers):
            time.sleep(PAUSE)
            with self._dropped_on_failure(label):
                taken = self.workers[label].ask("run")
                if label in times:
                    times[label].seconds.append(taken["seconds"])
                    times[label].others.append(taken["others"])
        if OURS in self.workers:
            time.sleep(PAUSE)
            with self._dropped_on_failure(OURS):
                rates.append(self.workers[OURS].ask("products", shape=self._key, is_tiny=self._tiny)["rate"])

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def _convert(
    converter: str,
    directory: Path,
    folder: Path,
    threads: int,
    log: IO[bytes],
    texts: list[str],
    seconds: float,
) -> None:
    worker = Worker(converter, directory, folder, threads, log)
    try:
        worker.ask("convert", timeout=seconds, documents=texts)
    finally:
        worker.close()


def median_ratio(result: EngineResult, label: str, base: str = OURS) -> float:
    """Return the median of the ratios of the rounds: the time of `label` over that of `base`."""
    pairs = zip(result.times[label].seconds, result.times[base].seconds, strict=False)
    return statistics.median(theirs / own for theirs, own in pairs)


def as_json(result: EngineResult) -> dict[str, Any]:
    """Return all figures of a cell."""
    return {
        "row": result.cell.name,
        "documents": result.documents,
        "wanted_documents": result.load.documents,
        "tokens": sum(result.lengths),
        "floor_ms": round(result.floor * 1e3, 1) if result.product_rate else None,
        "product_gflops": round(result.product_rate / 1e9, 1),
        "seconds": {label: times.seconds for label, times in result.times.items()},
        "other_cores": {label: times.others for label, times in result.times.items()},
        "peak_mib": {label: round(value) for label, value in result.memory.items()},
        "batches": result.batches,
        "absent": result.absent,
    }
