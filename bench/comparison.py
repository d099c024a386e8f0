"""Results of `cross_encoders`: derived figures, tables, plots and JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench import machine
from bench.workload import Shape
from rich.console import Console
from rich.table import Table

OURS, FLOOR = "sie", "products alone"


@dataclass
class Times:
    """A contender's runs: their seconds, and the cores that other processes used."""

    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Agreement:
    """Differences between our logits and the reference's, and between bf16 and fp32. `spread`: σ of the reference."""

    spread: float
    fp32: float  # max |Δ| ours fp32 – transformers fp32
    bf16: float  # max |Δ| ours bf16 – ours fp32
    tau: float  # Kendall's τ of the two rankings, ours bf16 – ours fp32
    reference_bf16: float  # max |Δ| transformers bf16 – transformers fp32
    reference_tau: float


@dataclass(frozen=True)
class Report:
    """The results for one shape."""

    shape: Shape
    lengths: list[int]
    batch_tokens: int
    times: dict[str, Times]
    product_flops: float
    agreement: Agreement

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def flops(self) -> float:
        return self.shape.flops(self.lengths)

    @property
    def default(self) -> str:
        return next(name for name in self.times if name.startswith("sentence-transformers fp32"))

    @property
    def best(self) -> str:
        """The fastest of sentence-transformers' bf16 settings in this run."""
        tried = [name for name in self.times if name.startswith("sentence-transformers bf16")]
        return min(tried, key=lambda name: self.times[name].best)

    @property
    def floor(self) -> float:
        """Seconds that the arithmetic would take at the rate of the matrix products alone."""
        return self.flops * self.times[FLOOR].best / self.product_flops

    def ratio(self, name: str) -> float:
        return self.times[name].best / self.times[OURS].best

    def median_ratio(self, name: str) -> float:
        """The median of the ratios of all rounds, which is steadier than best times on a busy machine."""
        pairs = zip(self.times[name].seconds, self.times[OURS].seconds, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    @property
    def others(self) -> float:
        return statistics.median(o for times in self.times.values() for o in times.others)


def show(console: Console, report: Report) -> None:
    shape, lengths = report.shape, report.lengths
    console.print(
        f"\n[bold]{shape.name}[/] ({shape.layers} layers × {shape.width}, random weights): {len(lengths)} documents, "
        f"{report.tokens:,} tokens (median {statistics.median(lengths):.0f}, longest {max(lengths)}), "
        f"{report.flops / 1e9:,.0f} GFLOP; our batches {report.batch_tokens:,} tokens"
    )
    table = Table("time includes tokenisation", box=None, pad_edge=False)
    for heading in ("best ms", "median ms", "pairs/s", "tokens/s", "GFLOP/s", "ours is ×", "by rounds ×"):
        table.add_column(heading, justify="right")
    for name, times in report.times.items():
        if name != FLOOR:
            table.add_row(*figures(report, name, times), style="bold" if name == OURS else None)
    console.print(table)
    show_verdicts(console, report)


def figures(report: Report, name: str, times: Times) -> list[str]:
    marks = {report.default: "  ← its default", report.best: "  ← its best"}
    per_second = [
        len(report.lengths) / times.best,
        report.tokens / times.best,
        report.flops / times.best / 1e9,
    ]
    ratios = ["", ""] if name == OURS else [f"{report.ratio(name):.2f}", f"{report.median_ratio(name):.2f}"]
    return [
        name + marks.get(name, ""),
        f"{times.best * 1e3:,.0f}",
        f"{times.median * 1e3:,.0f}",
        *(f"{value:,.0f}" for value in per_second),
        *ratios,
    ]


def show_verdicts(console: Console, report: Report) -> None:
    shape, found = report.shape, report.agreement
    rate = report.product_flops / report.times[FLOOR].best / 1e9
    for label, name, expected in (
        ("its default", report.default, shape.over_default),
        ("its best", report.best, shape.over_best),
    ):
        ratio = report.ratio(name)
        verdict = "[green]ok[/]" if ratio >= expected else "[red]short[/]"
        console.print(f"against {label}: × {ratio:.2f}, expected ≥ {expected} on an AMX CPU: {verdict}")
    console.print(
        f"floor {report.floor * 1e3:,.0f} ms ({rate:,.0f} GFLOP/s of the products alone, this run); "
        f"ours is {report.times[OURS].best / report.floor:.2f} × the floor"
    )
    console.print(
        f"logits (σ {found.spread:.2f}): ours fp32 – transformers fp32 max |Δ| {found.fp32:.1e}; "
        f"ours bf16 – fp32 max |Δ| {found.bf16:.3f}, Kendall τ {found.tau:.3f} "
        f"(transformers bf16 – fp32: {found.reference_bf16:.3f}, {found.reference_tau:.3f})"
    )
    state = (
        "quiet" if report.others <= machine.QUIET else "[yellow]disturbed: read the ratios, not the times[/]"
    )
    console.print(f"other processes used {report.others:.2f} cores (median of all runs): {state}")


def as_json(report: Report) -> dict[str, Any]:
    return {
        "shape": asdict(report.shape),
        "documents": len(report.lengths),
        "tokens": report.tokens,
        "median_tokens": statistics.median(report.lengths),
        "longest_tokens": max(report.lengths),
        "gflop": round(report.flops / 1e9, 1),
        "batch_tokens": report.batch_tokens,
        "floor_ms": round(report.floor * 1e3, 1),
        "floor_ratio": round(report.times[OURS].best / report.floor, 3),
        "over_default": round(report.ratio(report.default), 2),
        "over_best": round(report.ratio(report.best), 2),
        "best_setting": report.best,
        "other_cores": round(report.others, 2),
        "agreement": asdict(report.agreement),
        "times": {name: asdict(times) for name, times in report.times.items()},
    }


def draw(reports: list[Report], path: Path) -> None:
    """Draw one panel per shape: pairs per second of all contenders, ours first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 2.4 * len(reports)), layout="constrained")
    for axes, report in zip(np.atleast_1d(figure.subplots(len(reports), 1)), reports, strict=True):
        names = [name for name in report.times if name != FLOOR][::-1]
        speeds = [len(report.lengths) / report.times[name].best for name in names]
        colors = ["#1f6feb" if name == OURS else "#9aa5b1" for name in names]
        bars = axes.barh(names, speeds, 0.7, color=colors)
        labels = [
            f"{speed:.0f}" if name == OURS else f"{speed:.0f}  (ours × {report.ratio(name):.1f})"
            for name, speed in zip(names, speeds, strict=True)
        ]
        axes.bar_label(bars, labels, fontsize=8, padding=3)
        axes.set_title(
            f"{report.shape.name}: pairs per second, {report.tokens:,} tokens", fontsize=10, loc="left"
        )
        axes.set_xlim(0, max(speeds) * 1.2)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
