"""What the threads of a product cost others while they wait for each other: ours against libgomp's own setting.

    python -m bench.spinning

Two servers with the same small model (BERT 2×32), one as `sie-server serve` starts it, one with libgomp's default
(`GOMP_SPINCOUNT=300000`), take turns with the same clients; first on their own, then beside a process that keeps one
core busy. The clients themselves need a part of a core, so even the first row shows how well a server shares.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import click
from bench.load import Group, apply_load, warm_up
from bench.local_server import Server, running_server
from bench.workload import TOY, write_checkpoint
from rich.console import Console
from rich.table import Table

MODEL = "bench/toy"
SIDES = {"ours": {}, "libgomp's default": {"GOMP_SPINCOUNT": "300000"}}
BESIDE = ("nothing", "a busy process")
console = Console(width=None if Console().is_terminal else 120)


@contextmanager
def busy_process(seconds: float) -> Iterator[None]:
    """Another program that uses one core; it ends by itself, should nobody end it."""
    work = f"import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def one_turn(server: Server, clients: int, documents: int, seconds: float) -> Group:
    await warm_up(server, MODEL, documents)
    group = Group(clients, documents)
    await apply_load(server, MODEL, "turn", {"clients": group}, seconds)
    return group


def show(turns: dict[tuple[str, str], list[Group]]) -> None:
    table = Table("beside", "waiting", box=None, title="latencies in ms", title_justify="left")
    for heading in ("failed", "requests/s", "p50", "p95", "p99", "ours is ×", "worst turn, requests/s"):
        table.add_column(heading, justify="right")
    for beside in BESIDE:
        rates = {side: [len(g.latencies) / g.last for g in turns[beside, side]] for side in SIDES}
        means = {side: sum(found) / len(found) for side, found in rates.items()}
        for side in SIDES:
            whole = Group(0, 0, latencies=[x for g in turns[beside, side] for x in g.latencies])
            table.add_row(
                beside,
                side,
                str(sum(g.failures.total() for g in turns[beside, side])),
                f"{means[side]:,.0f}",
                *(f"{whole.percentile(p):,.0f}" for p in (50, 95, 99)),
                f"{means['ours'] / means[side]:.2f}",
                f"{min(rates[side]):,.0f}",
            )
    console.print(table)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clients", type=click.IntRange(1, 64), default=16, show_default=True)
@click.option("--documents", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 60), default=4, show_default=True, help="Per turn.")
@click.option("--rounds", type=click.IntRange(1, 20), default=4, show_default=True)
def main(clients: int, documents: int, seconds: float, rounds: int) -> None:
    turns: dict[tuple[str, str], list[Group]] = {(beside, side): [] for beside in BESIDE for side in SIDES}
    with ExitStack() as stack:
        directory = write_checkpoint(TOY, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        servers = {
            side: stack.enter_context(running_server(f"{MODEL}={directory}", environment=environment))
            for side, environment in SIDES.items()
        }
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds} …")
            for beside, side in turns:
                with busy_process(10 * seconds) if beside != BESIDE[0] else nullcontext():
                    turn = one_turn(servers[side], clients, documents, seconds)
                    turns[beside, side].append(asyncio.run(turn))
    show(turns)


if __name__ == "__main__":
    main()
