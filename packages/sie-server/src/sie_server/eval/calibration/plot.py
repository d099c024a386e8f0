"""The reliability plot of a calibration."""

from __future__ import annotations

from pathlib import Path

from sie_server.eval.calibration.fit import Quality
from sie_server.offline.errors import needed


def draw_reliability(before: Quality, after: Quality, path: Path) -> None:
    """Write observed against predicted relevance, by tenths. Raises OfflineError without matplotlib."""
    needed("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="#9aa5b1", linewidth=1)
    for label, color, found in (("before", "#9aa5b1", before), ("calibrated, held out", "#1f6feb", after)):
        axes.plot(
            [each.predicted for each in found.bins],
            [each.observed for each in found.bins],
            "o-",
            color=color,
            label=f"{label}: Brier {found.brier:.3f}, ECE {found.ece:.3f}",
        )
    axes.set_xlabel("predicted")
    axes.set_ylabel("observed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path, dpi=140)
