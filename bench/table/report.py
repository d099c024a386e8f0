"""The table in Markdown, and its block in docs/performance.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench.cross_encoders import kendall_tau
from bench.machine import QUIET
from bench.table.entries import ENTRIES, EXACT, OURS, REFERENCE
from bench.table.offline import EngineResult, median_ratio
from bench.table.served import INFINITY, ServedResult, merged

BLOCK = re.compile(r"(<!-- generated: table -->\n).*?(<!-- end -->)", re.DOTALL)
ENGINE_HEADER = (
    "contender",
    "median ms",
    "best ms",
    "pairs/s",
    "time ÷ SIE bf16",
    "÷ floor",
    "peak MiB",
    "max \\|Δ\\|",
    "τ",
)
HTTP_HEADER = (
    "clients × documents",
    "server",
    "pairs/s",
    "÷ SIE bf16",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "failed",
    "peak MiB",
)
NONE = "–"


@dataclass
class Report:
    """All results of a run. `left_out` maps rows to the reason."""

    machine: dict[str, Any]
    minutes: float
    command: str
    seconds: float = 0.0
    engine: list[EngineResult] = field(default_factory=list)
    served: list[ServedResult] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)  # key → name


def markdown(report: Report, plot: str | None = None) -> str:
    """Return the whole table; `plot` is the file name of the plot."""
    parts = [_machine(report)]
    if plot:
        parts.append(f"![Pairs per second of all contenders]({plot})")
    for result in report.engine:
        name = f"{report.shapes[result.cell.shape]}, {result.load.name}"
        parts += [f"**Engine: {name}**{_size(result)}", _engine_table(result), *_absent(result.absent)]
    for served in report.served:
        name = f"{report.shapes[served.cell.shape]}, {served.load.name}"
        parts += [f"**HTTP: {name}**", _http_table(served), *_absent(served.absent)]
    if report.left_out:
        lines = [f"- `{name}`: {reason}" for name, reason in report.left_out.items()]
        parts.append("Left out:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _machine(report: Report) -> str:
    about = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cpu']}, {about['cores']} cores ({', '.join(about['cpu_flags']) or 'no special instructions'}), "
        f"{about['threads']} threads, {about['memory_gib']} GiB; {versions}. Recorded {about['date']}, "
        f"`{report.command}`, {report.seconds / 60:.0f} minutes. {_others(report)}"
    )


def _others(report: Report) -> str:
    cores = [value for result in report.engine for times in result.times.values() for value in times.others]
    if not cores:
        return "The load of other processes was not measured."
    middle = statistics.median(cores)
    quiet = sum(value <= QUIET for value in cores) / len(cores)
    verdict = "" if middle <= QUIET else " Read the ratios, not the times."
    return (
        f"Other processes used {middle:.2f} cores (median of all runs, largest {max(cores):.2f}); "
        f"{quiet:.0%} of the runs were undisturbed.{verdict}"
    )


def _size(result: EngineResult) -> str:
    fewer = (
        f" of {result.load.documents:,}, to fit the budget"
        if result.documents < result.load.documents
        else ""
    )
    runs = min((len(times.seconds) for times in result.times.values()), default=0)
    floor = (
        f"; floor {result.floor * 1e3:,.0f} ms at {result.product_rate / 1e9:,.0f} GFLOP/s"
        if result.product_rate
        else ""
    )
    return f": {result.documents:,} documents{fewer}, {sum(result.lengths):,} tokens, {runs} rounds{floor}"


def _engine_table(result: EngineResult) -> str:
    rows = [_engine_row(result, entry.label) for entry in ENTRIES if entry.label in result.times]
    return _table(ENGINE_HEADER, rows)


def _engine_row(result: EngineResult, label: str) -> list[str]:
    times = result.times[label]
    difference, tau = _agreement(result, label)
    batch = result.batches.get(label)
    ratio = f"{median_ratio(result, label):.2f}" if OURS in result.times else NONE
    return [
        label + (f", batch {batch}" if batch else ""),
        f"{times.median * 1e3:,.0f}",
        f"{times.best * 1e3:,.0f}",
        f"{result.documents / times.median:,.1f}",
        ratio,
        f"{times.best / result.floor:.2f}" if result.product_rate else NONE,
        f"{result.memory[label]:,.0f}",
        difference,
        tau,
    ]


def _agreement(result: EngineResult, label: str) -> tuple[str, str]:
    """Compare logits with those of transformers in fp32, or else with ours."""
    base = REFERENCE if REFERENCE in result.logits else EXACT
    if label == base or base not in result.logits:
        return NONE, NONE
    own, theirs = np.array(result.logits[label]), np.array(result.logits[base])
    return f"{np.abs(own - theirs).max():.2g}", f"{kendall_tau(own, theirs):.3f}"


def _http_table(result: ServedResult) -> str:
    rows = []
    for clients, found in result.phases.items():
        whole = {label: merged(outcomes) for label, outcomes in found.items()}
        for label, figures in whole.items():
            rows.append(
                [
                    f"{clients} × {result.documents[clients]}",
                    label,
                    f"{figures['pairs_per_s']:,.1f}",
                    _rate_ratio(found, label),
                    *(
                        NONE if figures[f"p{p}_ms"] is None else f"{figures[f'p{p}_ms']:,.0f}"
                        for p in (50, 95, 99)
                    ),
                    str(figures["failed"]),
                    f"{result.memory[label]:,.0f}",
                ]
            )
    return _table(HTTP_HEADER, rows)


def _rate_ratio(found: dict[str, list[Any]], label: str) -> str:
    """Return the median of the ratios of the rounds: pairs/s in relation to ours in bf16."""
    if OURS not in found:
        return NONE
    rounds = zip(found[label], found[OURS], strict=True)
    ratios = [a.pairs_per_second / b.pairs_per_second for a, b in rounds if b.pairs_per_second]
    return f"{statistics.median(ratios):.2f}" if ratios else NONE


def _absent(absent: dict[str, str]) -> list[str]:
    known = [entry.label for entry in ENTRIES] + [INFINITY]
    lines = [f"- {label}: {absent[label]}" for label in known if label in absent]
    return ["Not measured:\n\n" + "\n".join(lines)] if lines else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ruler, *rows))


def into_page(page: Path, table: str) -> None:
    """Replace the block of the table in a page.

    Raises:
        ValueError: the page has no such block.
    """
    text = page.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise ValueError(f"{page} has no block <!-- generated: table --> … <!-- end -->")
    page.write_text(BLOCK.sub(lambda match: f"{match[1]}{table}{match[2]}", text), encoding="utf-8")
