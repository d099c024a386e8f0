"""Latency against load for 1 to 16 replicas: a discrete-event simulation with the server's own scheduling policy.

    python -m bench.simulate                   # every scenario of docs/scale.md, 100 s on two idle cores
    python -m bench.simulate --record          # also renews the figures and the plot of docs/scale.md

The queue of every simulated replica is `sie_server.serving.device.queue.TokenQueue`. The same seed gives the same
figures on every machine.
"""

from __future__ import annotations

import json
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
from bench.scale.page import PLOT, SIMULATED, write_page
from bench.scale.scenarios import BULK_SHARE, COUNTS, Scenario, all_scenarios, run
from bench.scale.tables import Results, Simulated, latency_table, study_tables
from rich.console import Console
from rich.progress import Progress

OUT = Path(__file__).resolve().parent / "out"
COLOURS = dict(zip(COUNTS, ("#d1495b", "#edae49", "#00798c", "#30638e"), strict=True))
console = Console(width=None if Console().is_terminal else 120)


def simulate_all(requests: int, seed: int, processes: int) -> Results:
    """Run all scenarios, the longest first, and show how many are done."""
    # a bulk job costs as much as twenty requests, and a split request as much as its parts
    order = sorted(all_scenarios(), key=lambda s: (s.bulk_share, s.split, s.replicas), reverse=True)
    results: Results = {}
    with ProcessPoolExecutor(processes) as pool, Progress(console=console) as progress:
        task = progress.add_task("scenarios", total=len(order))
        running = {pool.submit(partial(run, requests=requests, seed=seed), each): each for each in order}
        for done in as_completed(running):
            results[running[done]] = done.result()
            progress.advance(task)
            if not console.is_terminal and len(results) % 20 == 0:
                console.print(f"{len(results)} of {len(order)} scenarios")
    return {scenario: results[scenario] for scenario in all_scenarios()}


def plot(results: Results, file: Path) -> None:
    """Draw p50 and p99 against load: one panel without and one with bulk jobs, a colour per number of replicas."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "sie", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(10, 4.6), layout="constrained")
    for panel, share in zip(panels, (0.0, BULK_SHARE), strict=True):
        for replicas in COUNTS:
            for split in (False, True):
                _curves(panel, results, replicas, split, share)
        panel.set(xlabel="load", yscale="log", xlim=(0, 1), ylim=(0.2, 60))
        panel.set_title(f"with bulk jobs: {share:.0%} of the load" if share else "without bulk jobs")
        panel.set_yticks((0.3, 0.5, 1, 2, 5, 10, 20, 50), ("0.3", "0.5", "1", "2", "5", "10", "20", "50"))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("latency / service time")
    panels[0].legend(fontsize="small", ncols=2, loc="upper left")
    figure.savefig(file, metadata={"Date": None})


def _curves(panel, results: Results, replicas: int, split: bool, share: float) -> None:  # type: ignore[no-untyped-def]
    chosen = [s for s in results if s == Scenario(s.load, replicas, split, share)]
    if not chosen:
        return
    loads, colour = [s.load for s in chosen], COLOURS[replicas]
    style = "--" if split else "-"
    label = f"{replicas} replica{'s' if replicas > 1 else ''}{', split' if split else ''}"
    panel.plot(
        loads, [results[s].p99 for s in chosen], style, marker="o", ms=3, color=colour, label=f"{label}, p99"
    )
    panel.plot(loads, [results[s].p50 for s in chosen], style, lw=0.8, alpha=0.6, color=colour)


@click.command()
@click.option(
    "--requests",
    type=click.IntRange(1_000, 1_000_000),
    default=10_000,
    show_default=True,
    help="Per scenario.",
)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1, 64), default=os.cpu_count(), help="Default: one per core."
)
@click.option("--record", is_flag=True, help="Renew the figures and the plot in docs/.")
def main(requests: int, seed: int, processes: int, record: bool) -> None:
    """Simulate all scenarios, print their latencies, and write report and plot to bench/out."""
    start = time.perf_counter()
    simulated = Simulated(requests, seed, simulate_all(requests, seed, processes))
    console.print(latency_table(simulated.results), highlight=False)
    for name, table in study_tables(simulated.results).items():
        console.print(f"{name}\n{table}", highlight=False)
    OUT.mkdir(parents=True, exist_ok=True)
    rows = [asdict(scenario) | asdict(found) for scenario, found in simulated.results.items()]
    report = json.dumps({"requests": requests, "seed": seed, "rows": rows}, separators=(",", ":"))
    for file in (OUT / "simulate.json", *((SIMULATED,) if record else ())):
        file.write_text(report.replace("},", "},\n") + "\n", encoding="utf-8")
    for file in (OUT / "simulate.svg", *((PLOT,) if record else ())):
        plot(simulated.results, file)
    if record:
        write_page()
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    console.print(
        f"{len(rows)} scenarios in {time.perf_counter() - start:.0f} s ({used:.0f} s of CPU time); "
        "wrote simulate.json and simulate.svg"
    )


if __name__ == "__main__":
    main()
