"""Quality against latency, with the Pareto front: models that no other one beats in both."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sie_server.eval.results import SetResult
from sie_server.offline.errors import needed

MOST_PANELS = 9


class Point(NamedTuple):
    """A model in the plot."""

    model: str
    latency_ms: float
    quality: float


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point beats in quality at most at their latency, the fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.latency_ms, -each.quality)):
        if not front or point.quality > front[-1].quality:
            front.append(point)
    return front


def points_of(each: SetResult, metric: str) -> list[Point]:
    """Return the models of a set."""
    return [
        Point(model.model, model.latency_p50_ms, change.after)
        for model in each.models
        for change in model.changes
        if change.metric == metric
    ]


def mean_points(sets: Sequence[SetResult], metric: str) -> list[Point]:
    """Return the means over sets of each model."""
    rows = zip(*(points_of(each, metric) for each in sets), strict=True)
    return [
        Point(row[0].model, sum(p.latency_ms for p in row) / len(row), sum(p.quality for p in row) / len(row))
        for row in rows
    ]


def draw(sets: Sequence[SetResult], metric: str, path: Path) -> None:
    """Write a panel per set, and one of the means. Raises OfflineError without matplotlib."""
    needed("matplotlib")
    from matplotlib.figure import Figure

    panels = [(each.name, points_of(each, metric), each.before[metric]) for each in sets]
    if len(sets) > 1:
        before = sum(each.before[metric] for each in sets) / len(sets)
        panels = [("mean", mean_points(sets, metric), before), *panels][:MOST_PANELS]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, points, before) in zip(grid.flat, panels, strict=False):
        _panel(axes, title, points, before, sets[0].first_stage)
    figure.supxlabel("p50 latency of a query (ms)", fontsize=9)
    figure.supylabel(metric, fontsize=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font does not have
        figure.savefig(path, dpi=140)


def short_names(models: Sequence[str]) -> list[str]:
    """Return the names without their organisations, where these tell no two models apart."""
    short = [re.sub(r"[^/:=@]+/", "", model) for model in models]
    return [one if short.count(one) == 1 else model for one, model in zip(short, models, strict=True)]


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a logarithmic axis from `low` to `high`, at most about six."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [
            step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high
        ]
        if len(found) > 2:
            return found[:: -(-len(found) // 6)]
    ends = (low * (high / low) ** 0.2, low * (high / low) ** 0.8)
    return list(dict.fromkeys(float(f"{value:.2g}") for value in ends))


def _panel(axes: Any, title: str, points: Sequence[Point], before: float, first_stage: str) -> None:
    axes.axhline(before, color="#9aa5b1", linestyle="--", linewidth=1)
    axes.annotate(first_stage, (0, before), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")
    front = pareto(points)
    axes.plot([p.latency_ms for p in front], [p.quality for p in front], "-", color="#1f6feb", linewidth=1)
    latencies = sorted(point.latency_ms for point in points)
    middle = (latencies[0] * latencies[-1]) ** 0.5  # of a logarithmic axis
    names = short_names([point.model for point in points])
    by_latency = sorted(zip(points, names, strict=True), key=lambda each: each[0].latency_ms)
    for place, (point, name) in enumerate(by_latency):
        color = "#1f6feb" if point in front else "#9aa5b1"
        axes.plot(point.latency_ms, point.quality, "o", color=color)
        side = "right" if point.latency_ms > middle else "left"
        above = place % 2 == 0  # neighbours on the axis are labelled on different sides
        axes.annotate(
            name,
            (point.latency_ms, point.quality),
            (0, 6 if above else -6),
            textcoords="offset points",
            fontsize=7,
            ha=side,
            va="bottom" if above else "top",
        )
    axes.set_xscale("log")
    axes.margins(0.25)
    low, high = axes.get_xlim()
    axes.set_xticks(shown := ticks(low, high), [f"{tick:,g}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
