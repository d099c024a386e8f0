"""One wide device thread compared with several narrow ones on the same cores, in one run.

    python -m bench.device_threads                  # one thread with all cores, and one per core
    python -m bench.device_threads --teams 1,2,4    # on a larger machine

Each contender is the server's own queue with that number of threads, which share the cores and one model. They
alternate (A B A B …). Throughput: requests of 100 documents that all wait. Latency: one request on an idle server.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from bench import machine
from bench.cross_encoders import PAUSE, console
from bench.workload import QUERY, SHAPES, natural_texts, write_checkpoint
from rich.table import Table

from sie_server.engine.calibration import calibration
from sie_server.engine.device import usable_cores
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.metrics import Metrics, RequestTiming

SIZES = (100, 10, 1)  # documents of a request whose latency is measured
PASSES = 2  # of each load in a round


@dataclass
class Contender:
    """A number of device threads, and the seconds of each load."""

    threads: int
    worker: DeviceWorker
    batch_tokens: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def measure(self, engine: Engine) -> None:
        """Find the batch size of one of the threads, as the server does."""
        steps, done = calibration(engine), object()
        while await self.worker.call(lambda: next(steps, done)) is not done:
            pass
        self.batch_tokens = engine.batch_tokens

    async def run(self, name: str, engine: Engine, requests: Sequence[list[str]]) -> None:
        """Run requests that arrive at once, and record the seconds until the last one has ended."""
        engine.batch_tokens = self.batch_tokens
        jobs = [engine.tokenize_score(ScoreTexts(QUERY, texts, engine.max_seq_length)) for texts in requests]
        await asyncio.sleep(PAUSE)
        started = time.perf_counter()
        await asyncio.gather(*(self.worker.run(engine, [job], RequestTiming()) for job in jobs))
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)


async def compared(
    engine: Engine, teams: Sequence[int], rounds: int, requests: int, words: int
) -> list[Contender]:
    """Measure all contenders, in turns."""
    cores = usable_cores()
    found = [Contender(n, DeviceWorker(10**9, cores // n, Metrics(), device_threads=n)) for n in teams]
    texts = natural_texts(100, words)
    loads = {f"{requests} × 100": [texts] * requests} | {f"1 × {size}": [texts[:size]] for size in SIZES}
    for contender in found:
        await contender.measure(engine)
        await contender.run("warm", engine, [texts])
    for _ in range(rounds * PASSES):
        for name, load in loads.items():
            for contender in found:
                await contender.run(name, engine, load)
    for contender in found:
        contender.seconds.pop("warm")
        await asyncio.to_thread(contender.worker.close)
    return found


def show(shape: str, found: Sequence[Contender], cores: int) -> None:
    """Print the medians, and each time relative to that of one thread."""
    table = Table(title=f"{shape}: median time, and relative to one thread")
    table.add_column("threads × math threads")
    table.add_column("batch", justify="right")
    for name in found[0].seconds:
        table.add_column(name, justify="right")
    for contender in found:
        cells = []
        for name, seconds in contender.seconds.items():
            pairs = zip(seconds, found[0].seconds[name], strict=True)
            ratio = statistics.median(own / first for own, first in pairs)
            cells.append(f"{statistics.median(seconds) * 1e3:,.1f} ms ({ratio:.2f}×)")
        table.add_row(
            f"{contender.threads} × {cores // contender.threads}", str(contender.batch_tokens), *cells
        )
    console.print(table)


@click.command()
@click.option(
    "--shapes", default=",".join(SHAPES), show_default=True, help="Comma-separated names of shapes."
)
@click.option(
    "--teams", default="", help="Comma-separated numbers of device threads; default: 1 and one per core."
)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--requests", type=click.IntRange(1, 100), default=4, show_default=True, help="That wait at once."
)
def main(shapes: str, teams: str, dtype: str, rounds: int, requests: int) -> None:
    """Compare numbers of device threads on the cores of this machine."""
    cores, about = usable_cores(), machine.describe()
    numbers = [int(each) for each in teams.split(",")] if teams else sorted({1, cores})
    if bad := [n for n in numbers if not 1 <= n <= cores]:
        raise click.BadParameter(f"{bad[0]}: expected 1 to {cores}, the cores", param_hint="--teams")
    console.print(
        f"{about['cpu']}, {cores} cores, torch {about['torch']}, load average {about['load_average']}"
    )
    for name in shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            engine = Engine(write_checkpoint(SHAPES[name], Path(folder)), device="cpu", dtype=dtype)
            show(
                name,
                asyncio.run(compared(engine, numbers, rounds, requests, SHAPES[name].median_words)),
                cores,
            )


if __name__ == "__main__":
    main()
