"""How differently two versions of a model answer the same requests. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sie_server.errors import cut
from sie_server.wire import ReplayRefusal, ReplayReport

TOP = 10
MOST_REASONS = 10  # that a report names
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The answer of one version: raw values and scores in the order of the documents, and its device time."""

    raw: Sequence[float]
    scores: Sequence[float]
    device_ms: float


def share_of_swapped_pairs(old: Sequence[float], new: Sequence[float]) -> float | None:
    """Return the share of document pairs that two lists of raw values order differently; None without pairs.

    A pair that is tied in one list counts half, and a pair that is tied in both does not count.
    """
    if len(old) < 2:
        return None
    one, other = _signs(old), _signs(new)
    upper = np.triu_indices(len(old), 1)
    distance = np.abs(one[upper] - other[upper])  # 2: swapped, 1: tied in one of them
    return float(distance.mean() / 2)


def _signs(values: Sequence[float]) -> NDArray[np.int8]:
    array = np.asarray(values, dtype=np.float64)
    return np.sign(array[:, None] - array[None, :]).astype(np.int8)


def overlap(old: Sequence[float], new: Sequence[float], most: int = TOP) -> float:
    """Return the share of the best `most` documents of one list that are also among those of the other."""
    count = min(most, len(old))
    return len(_best(old, count) & _best(new, count)) / count


def _best(raw: Sequence[float], count: int) -> set[int]:
    return set(sorted(range(len(raw)), key=lambda i: -raw[i])[:count])


@dataclass
class Differences:
    """Collects the comparisons of single requests."""

    swapped: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    shifts: list[float] = field(default_factory=list)
    largest_shift: float = 0.0
    old_ms: float = 0.0
    new_ms: float = 0.0
    requests: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, old: Scored, new: Scored) -> None:
        """Compare the answers of both versions to one request."""
        self.requests += 1
        share = share_of_swapped_pairs(old.raw, new.raw)
        if share is not None:
            self.swapped.append(share)
        self.overlaps.append(overlap(old.raw, new.raw))
        shift = np.asarray(new.scores) - np.asarray(old.scores)
        self.shifts.append(float(shift.mean()))
        self.largest_shift = max(self.largest_shift, float(np.abs(shift).max()))
        self.old_ms += old.device_ms
        self.new_ms += new.device_ms

    def refuse(self, reason: str) -> None:
        """Count a request that the new version does not answer."""
        self.reasons[cut(reason, 200)] += 1

    @property
    def difference(self) -> float | None:
        """The mean share of swapped pairs; a refused request counts as 1. None: nothing could be compared."""
        refused = self.reasons.total()
        count = len(self.swapped) + refused
        return (sum(self.swapped) + refused) / count if count else None

    def report(self, max_difference: float | None, *, switched: bool) -> ReplayReport:
        """Return the figures of all requests."""
        mean = _mean(self.swapped)
        return ReplayReport(
            requests=self.requests,
            refused=[ReplayRefusal(*item) for item in self.reasons.most_common(MOST_REASONS)],
            refused_requests=self.reasons.total(),
            difference=self.difference,
            kendall_tau=None if mean is None else 1 - 2 * mean,
            top10_overlap=_mean(self.overlaps),
            score_shift=_mean(self.shifts),
            largest_shift=self.largest_shift if self.shifts else None,
            latency_ratio=self.new_ms / self.old_ms if self.old_ms > 0 else None,
            max_difference=max_difference,
            switched=switched,
            notes=self.notes,
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
