"""A long run of mixed traffic with faults, which checks that memory, descriptors, threads and metrics stay flat.

    python -m bench.soak                       # 20 minutes, at least 200,000 requests
    python -m bench.soak --minutes 1 --rate 100

A toy cross-encoder with two adapters, a toy encoder and the embedded model answer requests of every kind. At the same
time weights are swapped, adapters are loaded and unloaded, and callers hang up, send broken bodies, and leave
connections half open. Everything
runs on the loopback interface. `bench.soak_traffic` has the requests.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil
from bench import machine
from bench.local_server import Server, running_server
from bench.raw_client import Connection, request
from bench.soak_traffic import EMBEDDED, ENCODER, TOY_MODEL, Traffic, faults, write_models
from rich.console import Console

OUT = Path(__file__).resolve().parent / "out"
EVERY_S = 5.0
ALLOWED = 0.05
GOAL = 200_000 / 1_200  # requests per second
PATIENCE_S = 30.0
WATCHED = {
    "rss_mib": "resident memory, MiB",
    "descriptors": "file descriptors",
    "threads": "threads",
    "metric_lines": "lines of /metrics",
}
console = Console(width=None if Console().is_terminal else 120)


@dataclass(frozen=True)
class Sample:
    """The state of the server at one moment."""

    seconds: float
    requests: int
    rss_mib: float
    descriptors: float
    threads: float
    metric_lines: float


@dataclass
class Run:
    """A run in progress, shared by its tasks."""

    port: int
    process: psutil.Process
    rate: float
    start: float
    end: float
    answers: Counter[str] = field(default_factory=Counter)  # kind and status
    unexpected: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    sent: int = 0

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self.end

    async def turn(self) -> None:
        """Wait until the next request is due at the wanted rate."""
        due = self.start + self.sent / self.rate
        self.sent += 1
        await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def caller(run: Run, traffic: Traffic, seed: int) -> None:
    """Send requests of all kinds over one kept connection."""
    rng, connection = random.Random(seed), Connection(run.port)
    while not run.over:
        await run.turn()
        kind = traffic.pick(rng)
        try:
            answer = await connection.ask(kind.sent, PATIENCE_S)
        except (OSError, EOFError, ValueError) as error:
            run.unexpected[f"{kind.name}: {type(error).__name__}"] += 1
            continue
        run.answers[f"{kind.name} {answer.status}"] += 1
        if answer.status not in kind.expected:
            run.unexpected[f"{kind.name}: {answer.status} {answer.code}"] += 1
    connection.close()


async def misbehave(run: Run, folder: Path) -> None:
    """Inject one fault after the other, five a second."""
    rng, counts = random.Random(0), Counter[str]()
    async with asyncio.TaskGroup() as group:
        while not run.over:
            fault = rng.choice(faults(folder))
            counts[fault.__name__] += 1
            group.create_task(fault(run.port, rng))
            await asyncio.sleep(0.2)
    run.answers.update({f"fault {name}": count for name, count in counts.items()})


async def operate(run: Run, folder: Path) -> None:
    """Swap the weights of the toy model back and forth, and load and unload an adapter."""
    connection, swaps = Connection(run.port), 0
    while not run.over:
        source = str(folder / ("b", "a")[swaps % 2])
        adapter = {"model": TOY_MODEL, "adapter": "passing"}
        for path, body in (
            ("swap", {"model": TOY_MODEL, "source": source}),
            ("adapters/load", {**adapter, "source": str(folder / "adapter")}),
            ("adapters/unload", adapter),
        ):
            answer = await connection.ask(request("POST", f"/v1/admin/{path}", body), 2 * PATIENCE_S)
            run.answers[f"admin/{path} {answer.status}"] += 1
            if answer.status != 200:
                run.unexpected[f"admin/{path}: {answer.status} {answer.body[:200]!r}"] += 1
        swaps += 1
        await asyncio.sleep(3)
    connection.close()


async def watch(run: Run) -> None:
    """Take a sample every few seconds."""
    connection = Connection(run.port)
    while not run.over:
        await asyncio.sleep(min(EVERY_S, max(0.1, (run.end - run.start) / 100)))
        text = (await connection.ask(request("GET", "/metrics"), PATIENCE_S)).body
        with run.process.oneshot():
            rss, threads = run.process.memory_info().rss / 2**20, run.process.num_threads()
        run.samples.append(
            Sample(
                time.perf_counter() - run.start,
                run.answers.total(),
                rss,
                run.process.num_fds(),
                threads,
                text.count(b"\n"),
            )
        )
    connection.close()


async def soak(server: Server, folder: Path, seconds: float, rate: float, callers: int) -> Run:
    """Run everything for `seconds`."""
    assert server.process is not None
    port, start = urlsplit(server.url).port or 80, time.perf_counter()
    run = Run(port, server.process, rate, start, start + seconds)
    traffic = Traffic()
    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(run, traffic, number))
        for act in (misbehave(run, folder), operate(run, folder), watch(run)):
            group.create_task(act)
    return run


def growth(samples: list[Sample], name: str) -> tuple[float, float]:
    """Return the medians around 10 % of the run and at its end."""
    values = [float(getattr(sample, name)) for sample in samples]
    width = max(1, len(values) // 25)
    tenth = len(values) // 10
    return statistics.median(values[tenth : tenth + 2 * width]), statistics.median(values[-2 * width :])


def plot(samples: list[Sample], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(WATCHED), sharex=True, figsize=(8, 9), layout="constrained")
    for axes, (name, label) in zip(rows, WATCHED.items(), strict=True):
        values = [getattr(sample, name) for sample in samples]
        axes.plot([sample.requests / 1e3 for sample in samples], values)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(values))
    rows[-1].set_xlabel("thousand requests")
    figure.savefig(file, dpi=120)


def report(run: Run, out: Path) -> bool:
    """Print and write the results; return whether everything is flat and expected."""
    seconds = run.samples[-1].seconds
    served = sum(count for name, count in run.answers.items() if not name.startswith("fault"))
    console.print(f"{served:,} requests in {seconds:.0f} s, {served / seconds:.0f} a second")
    flat = True
    for name, label in WATCHED.items():
        tenth, end = growth(run.samples, name)
        ok = end <= tenth * (1 + ALLOWED)
        flat &= ok
        console.print(
            f"{label:<24} {tenth:10.1f} at 10 %, {end:10.1f} at the end, × {end / tenth:.3f} "
            f"{'[green]ok[/]' if ok else '[red]grows[/]'}"
        )
    for name, count in sorted(run.answers.items()):
        console.print(f"  {count:8,} × {name}", highlight=False)
    for name, count in run.unexpected.most_common(20):
        console.print(f"  [red]unexpected[/] {count:,} × {name}", markup=True, highlight=False)
    content = {
        "machine": machine.describe(),
        "requests": served,
        "answers": dict(run.answers),
        "unexpected": dict(run.unexpected),
        "samples": [asdict(sample) for sample in run.samples],
    }
    (out / "soak.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot(run.samples, out / "soak.png")
    console.print("wrote soak.json, soak.png and soak.log")
    return flat and not run.unexpected


@click.command()
@click.option("--minutes", type=click.FloatRange(0.2, 240), default=20, show_default=True)
@click.option(
    "--rate", type=click.FloatRange(1), default=round(GOAL * 1.05), show_default=True, help="Per second."
)
@click.option("--callers", type=click.IntRange(1, 256), default=16, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for report and plot.")
def main(minutes: float, rate: float, callers: int, out: Path) -> None:
    """Serve mixed traffic with faults, and check that nothing grows by more than 5 % after a tenth of the run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # a separate process, so that memory used to create the checkpoints is not this process's
        making = multiprocessing.get_context("spawn").Process(target=write_models, args=(folder,))
        making.start()
        making.join()
        out.mkdir(parents=True, exist_ok=True)
        models = (EMBEDDED, f"{ENCODER}={folder / 'encoder'}")
        flags = (
            *(f"--model={model}" for model in models),
            f"--adapter={TOY_MODEL}:kept={folder / 'adapter'}",
            f"--source-roots={name}",
            *("--dtype=float32", "--threads=1", "--batch-tokens=2048", "--offline", "--log-level=error"),
        )
        with (
            (out / "soak.log").open("wb") as log,
            running_server(f"{TOY_MODEL}={folder / 'a'}", flags=flags, log=log) as server,
        ):
            run = asyncio.run(soak(server, folder, 60 * minutes, rate, callers))
    if not report(run, out):
        sys.exit(1)


if __name__ == "__main__":
    main()
