"""The time of a forward pass by stage and by operator, from torch's profiler."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

REPEATS = 3
# stage → parts of its operators' names; the first match counts
STAGES = {
    "attention": ("attention", "flash"),
    "products": ("linear", "addmm", "aten::mm", "bmm", "mkldnn", "matmul"),
    "norms": ("layer_norm",),
    "activation": ("gelu", "silu", "tanh"),
    "copies": ("copy_", "aten::cat", "clone", "contiguous", "_to_copy", "fill_", "index"),
    "residuals": ("add",),
    "embedding": ("embedding",),
}


def stage_of(operator: str) -> str:
    return next(
        (s for s, parts in STAGES.items() if any(part in operator for part in parts)), "small operators"
    )


def profiled(run: Callable[[], Any]) -> tuple[float, list[Any]]:
    """Return the seconds of a run without the profiler, and the operators of a run with it."""
    from torch.profiler import ProfilerActivity, profile

    plain = min(timed(run) for _ in range(REPEATS))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    return plain, list(recorded.key_averages())


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def show(console: Console, title: str, run: Callable[[], Any], operators: int = 15) -> None:
    """Print both tables. The time outside of operators is that of Python and tokenisation."""
    wall, events = profiled(run)
    by_stage: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        row = by_stage[stage_of(event.key)]
        row[0] += event.self_cpu_time_total / 1e3
        row[1] += event.count
    inside = sum(ms for ms, _ in by_stage.values())
    table = Table(
        "stage", title=f"{title}: {wall * 1e3:.0f} ms without the profiler", title_justify="left", box=None
    )
    for heading in ("ms", "share", "calls"):
        table.add_column(heading, justify="right")
    for stage, (ms, calls) in sorted(by_stage.items(), key=lambda item: -item[1][0]):
        table.add_row(stage, f"{ms:.1f}", f"{ms / inside:.0%}", f"{calls:,}")
    console.print(table)
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:operators]:
        console.print(
            f"  {event.self_cpu_time_total / 1e3:8.1f} ms {event.count:6,} ×  {event.key}", highlight=False
        )
