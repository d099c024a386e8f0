"""The reliability plot of a calibration."""

from __future__ import annotations

from pathlib import Path

from sie_server.eval.calibration.fit import Quality
from sie_server.eval.calibration.threshold import wilson
from sie_server.offline.errors import needed


def draw_reliability(before: Quality, after: Quality, path: Path) -> None:
    """Write observed against predicted relevance, by tenths, with the 95 % interval of each.

    Raises:
        OfflineError: matplotlib is not installed.
    """
    needed("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="#9aa5b1", linewidth=1)
    for label, color, found in (("before", "#9aa5b1", before), ("calibrated, held out", "#1f6feb", after)):
        ends = [wilson(round(each.observed * each.pairs), each.pairs) for each in found.bins]
        axes.errorbar(
            [each.predicted for each in found.bins],
            [each.observed for each in found.bins],
            yerr=[
                [max(each.observed - low, 0) for each, (low, _) in zip(found.bins, ends, strict=True)],
                [max(high - each.observed, 0) for each, (_, high) in zip(found.bins, ends, strict=True)],
            ],
            fmt="o-",
            linewidth=1,
            color=color,
            label=f"{label}: Brier {found.brier:.3f}, ECE {found.ece:.3f}",
        )
    axes.set_xlabel("predicted")
    axes.set_ylabel("observed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    figure.savefig(path, dpi=140)
