"""Goodput, latency and refusals of a server that is offered up to 20 times the load that it can serve.

    python -m bench.overload                   # 0.5 to 20 times the capacity, patient and impatient callers, two lanes
    python -m bench.overload --loads 1,20 --seconds 6

Requests of 8 documents go to the embedded model on one thread. They arrive at random times, whether or not earlier ones
have been answered. Patient callers wait for their answer; impatient ones hang up after four times the median of a quiet
server. Compare ratios within one run only.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from bench import machine
from bench.local_server import running_server
from bench.overload_callers import CHEAP, MODEL, PATIENT_S, Crowd, Probers, bodies, median, recovery
from bench.overload_lanes import Lanes, measure_lanes
from rich.console import Console
from rich.table import Table

OUT = Path(__file__).resolve().parent / "out"
DOCUMENTS, PATIENCE = 8, 4  # patience as a multiple of the quiet median
CALM_S = 5.0  # in which the server forgets the patience of the callers before
CLOSED_LOOP = 8  # callers that keep the device busy
HEADINGS = (
    *("load", "offered", "goodput", "p50", "p99", "refused", "left", "not sent"),
    *("Retry-After", "accepted after", "recovered"),
)
console = Console(width=None if Console().is_terminal else 120)


@dataclass(frozen=True)
class Quiet:
    """The server without overload."""

    capacity: float  # requests per second
    median_s: float


@dataclass(frozen=True)
class Phase:
    """One offered load with one kind of callers."""

    load: float  # multiple of the capacity
    callers: str
    offered: float  # requests per second
    goodput: float  # answered per second, in the second half
    p50_s: float
    p99_s: float
    refused: float  # per second
    left: float  # callers who hung up or had no answer at the end, per second
    not_sent: float  # arrivals that this client could not send, per second
    retry_after_s: float  # median
    accepted_after_s: float  # median time until callers that probe are accepted
    recovery_s: float


async def quiet(port: int, sent: list[bytes], seconds: float) -> Quiet:
    """Measure the capacity with callers in a closed loop, and the latency at half of it."""
    crowd = Crowd(port)
    await crowd.turns(sent, CLOSED_LOOP, 2)  # warm up
    start = time.perf_counter()
    await crowd.turns(sent, CLOSED_LOOP, seconds)
    capacity = len(crowd.answered(start, start + seconds)) / seconds
    half = Crowd(port)
    await half.arrivals(sent, capacity / 2, seconds, PATIENT_S)
    for done in (crowd, half):
        done.close()
    return Quiet(capacity, half.percentile(0.5))


async def phase(
    port: int, sent: list[bytes], at_rest: Quiet, load: float, patient: bool, seconds: float
) -> Phase:
    """Offer a load for `seconds`, and wait until the server has recovered."""
    patience = PATIENT_S if patient else PATIENCE * at_rest.median_s
    crowd, eager, probers, start = Crowd(port), Crowd(port), Probers(), time.perf_counter()
    await asyncio.gather(
        crowd.arrivals(sent, load * at_rest.capacity, seconds, patience), probers.run(eager, sent, seconds)
    )
    for done in (crowd, eager):
        done.close()
    recovered = await recovery(port, sent, 2 * at_rest.median_s)
    left = crowd.offered - crowd.not_sent - sum(outcome.status != 0 for outcome in crowd.outcomes)
    waits = [outcome.retry_after for outcome in crowd.refused if outcome.retry_after is not None]
    return Phase(
        load,
        "patient" if patient else "impatient",
        crowd.offered / seconds,
        sum(len(c.answered(start + seconds / 2, start + seconds)) for c in (crowd, eager)) / (seconds / 2),
        crowd.percentile(0.5),
        crowd.percentile(0.99),
        len(crowd.refused) / seconds,
        left / seconds,
        crowd.not_sent / seconds,
        median(probers.told) if probers.told else median(waits),
        median(probers.waited),
        recovered,
    )


async def during_cheap(port: int, sent: list[bytes], rate: float, seconds: float) -> float:
    """Return the goodput of a busy server that also answers `rate` requests a second with 405."""
    busy, cheap, start = Crowd(port), Crowd(port), time.perf_counter()
    await asyncio.gather(
        busy.turns(sent, CLOSED_LOOP, seconds),
        cheap.arrivals([CHEAP], max(rate, 0.1), seconds, PATIENT_S),
    )
    for crowd in (busy, cheap):
        crowd.close()
    return len(busy.answered(start + seconds / 2, start + seconds)) / (seconds / 2)


@dataclass(frozen=True)
class Results:
    """Everything that one run measures."""

    quiet: Quiet
    phases: list[Phase]
    during_cheap: float  # goodput during as many 405 answers as the highest load had refusals
    lanes: list[Lanes]


async def measure(port: int, loads: list[float], seconds: float) -> Results:
    sent = bodies(DOCUMENTS)
    at_rest = await quiet(port, sent, seconds)
    console.print(f"capacity {at_rest.capacity:.1f} requests/s, quiet median {at_rest.median_s * 1e3:.0f} ms")
    phases = []
    for patient in (True, False):
        for load in loads:
            phases.append(await phase(port, sent, at_rest, load, patient, seconds))
            show(phases[-1], at_rest)
    highest = next(p for p in phases if p.load == max(loads) and p.callers == "patient")
    await asyncio.sleep(CALM_S)
    cheap = await during_cheap(port, sent, highest.refused, seconds)
    console.print(
        f"goodput {highest.goodput:.1f}/s during {highest.refused:.0f} refusals/s, {cheap:.1f}/s during as many 405 "
        f"answers: {ratio(highest.goodput, cheap)} (goal: 90 %)"
    )
    return Results(at_rest, phases, cheap, await measure_lanes(port, max(10.0, 2 * seconds)))


def ratio(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def show(phase: Phase, at_rest: Quiet) -> None:
    console.print(
        f"{phase.load:4.1f} × {phase.callers:<9} goodput {ratio(phase.goodput, at_rest.capacity):>5} of quiet, "
        f"recovered after {phase.recovery_s:.1f} s; Retry-After {phase.retry_after_s:.1f} s, "
        f"accepted after {phase.accepted_after_s:.1f} s",
        highlight=False,
    )


def tabulate(results: Results) -> None:
    table = Table("callers", box=None, title="per second; times in seconds", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for p in results.phases:
        rates = (p.goodput, p.p50_s, p.p99_s, p.refused, p.left, p.not_sent)
        times = (p.retry_after_s, p.accepted_after_s, p.recovery_s)
        table.add_row(p.callers, f"{p.load:g} ×", f"{p.offered:.0f}", *(f"{v:.2f}" for v in (*rates, *times)))
    console.print(table)
    for lanes in results.lanes:
        console.print(
            f"16 interactive callers {lanes.name}: p50 {lanes.p50_s * 1e3:.0f} ms, p99 {lanes.p99_s * 1e3:.0f} ms; "
            f"one batch takes {lanes.batch_s * 1e3:.0f} ms"
        )


def plot(results: Results, file: Path) -> None:
    """Draw goodput and latency in the first row, refusals and Retry-After in the second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, sharex=True, figsize=(10, 7), layout="constrained")
    (goodput, latency), (refusals, waits) = axes
    for callers in ("patient", "impatient"):
        chosen = [p for p in results.phases if p.callers == callers]
        loads = [p.load for p in chosen]
        goodput.plot(loads, [p.goodput / results.quiet.capacity for p in chosen], "o-", label=callers)
        (line,) = latency.plot(loads, [p.p50_s for p in chosen], "o-", label=f"{callers}, p50")
        latency.plot(loads, [p.p99_s for p in chosen], "^--", color=line.get_color(), label=f"{callers}, p99")
        refusals.plot(loads, [p.refused for p in chosen], "o-", label=f"{callers}, refused")
        refusals.plot(
            loads, [p.left for p in chosen], "^--", color=line.get_color(), label=f"{callers}, left"
        )
        waits.plot(loads, [p.retry_after_s for p in chosen], "o-", label=f"{callers}, Retry-After")
        waits.plot(
            loads,
            [p.accepted_after_s for p in chosen],
            "^--",
            color=line.get_color(),
            label=f"{callers}, accepted",
        )
    titles = ("goodput / capacity", "seconds until the answer", "per second", "seconds")
    for panel, title in zip((goodput, latency, refusals, waits), titles, strict=True):
        panel.set(ylabel=title, xscale="log", ylim=(0, None))
        panel.legend(fontsize="small")
    for panel in axes[1]:
        panel.set_xlabel("offered load / capacity")
    figure.savefig(file, dpi=120)


@click.command()
@click.option("--loads", default="0.5,1,2,5,10,20", show_default=True, help="Multiples of the capacity.")
@click.option("--seconds", type=click.FloatRange(2, 120), default=10, show_default=True, help="Per phase.")
@click.option("--flag", "flags", multiple=True, help="Flag for the server, e.g. --flag=--max-wait-s=5.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for report and plot.")
def main(loads: str, seconds: float, flags: tuple[str, ...], out: Path) -> None:
    """Measure a server under loads that it can and cannot serve."""
    fixed = ("--threads", "1", "--document-cache-mb", "0", "--log-level", "error")
    with running_server(MODEL, flags=(*fixed, *flags)) as server:
        port = urlsplit(server.url).port or 80
        results = asyncio.run(measure(port, [float(load) for load in loads.split(",")], seconds))
    tabulate(results)
    out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": machine.describe(), **asdict(results)}
    (out / "overload.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot(results, out / "overload.png")
    console.print("wrote overload.json and overload.png")


if __name__ == "__main__":
    main()
