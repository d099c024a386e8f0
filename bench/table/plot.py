"""The plot of the table: one panel per cell, bars of pairs per second."""

from __future__ import annotations

from pathlib import Path

from bench.table.entries import ENTRIES
from bench.table.report import Report
from bench.table.served import merged

OURS_COLOUR, OTHER_COLOUR = "#1f6feb", "#9aa5b1"
Bars = dict[str, float]


def panels(report: Report) -> list[tuple[str, Bars]]:
    """Return a title and pairs per second by contender for each panel."""
    found: list[tuple[str, Bars]] = []
    for result in report.engine:
        title = f"{report.shapes[result.cell.shape]}, {result.load.name}: engine"
        labels = [entry.label for entry in ENTRIES if entry.label in result.times]
        found.append((title, {label: result.documents / result.times[label].median for label in labels}))
    for served in report.served:
        title = f"{report.shapes[served.cell.shape]}, {served.load.name}: HTTP"
        bars = {
            f"{label}, {clients} clients": merged(outcomes)["pairs_per_s"]
            for clients, phases in served.phases.items()
            for label, outcomes in phases.items()
        }
        found.append((title, bars))
    return found


def draw(report: Report, path: Path) -> bool:
    """Draw all panels to a file; return False if there is nothing to draw."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = panels(report)
    if not found:
        return False
    rows = (len(found) + 1) // 2
    height = 0.8 + 0.24 * max(len(bars) for _, bars in found)
    with mpl.rc_context({"svg.hashsalt": "table", "svg.fonttype": "path"}):
        figure = Figure(figsize=(12, height * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for area, (title, bars) in zip(axes, found, strict=False):
            names = list(bars)[::-1]
            colours = [OURS_COLOUR if name.startswith("SIE") else OTHER_COLOUR for name in names]
            drawn = area.barh(names, [bars[name] for name in names], 0.7, color=colours)
            area.bar_label(drawn, [f"{bars[name]:,.1f}" for name in names], fontsize=7, padding=3)
            area.set_title(f"{title}, pairs/s", fontsize=9, loc="left")
            area.margins(x=0.15)
            area.tick_params(labelsize=7)
            area.spines[["top", "right"]].set_visible(False)
        for area in list(figure.axes)[len(found) :]:
            area.set_axis_off()
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else None)
    return True
