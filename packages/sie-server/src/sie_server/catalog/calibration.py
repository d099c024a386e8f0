"""From raw scores to probabilities of relevance, as `sie-server calibrate` fits and an entry keeps it."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta, Struct


class Calibration(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function of the raw score: a logistic one, or linear pieces between points. It never falls."""

    slope: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Platt: probability = sigmoid(slope · raw + intercept)"),
    ] = None
    intercept: float | None = None
    points: Annotated[
        Annotated[list[tuple[float, float]], Meta(min_length=2, max_length=10_000)] | None,
        Meta(description="Isotonic: rising (raw score, probability)"),
    ] = None
    options: Annotated[
        dict[str, Any], Meta(description="Options of the scores that it was fitted to, as in a profile")
    ] = {}
    note: str | None = None

    def __post_init__(self) -> None:
        platt = self.slope is not None and self.intercept is not None
        if platt == (self.points is not None) or (self.slope is None) != (self.intercept is None):
            raise ValueError("a calibration has slope and intercept, or points")
        numbers = [
            self.slope or 0.0,
            self.intercept or 0.0,
            *(v for point in self.points or () for v in point),
        ]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("the numbers of a calibration must be finite")
        if self.points is not None:
            self._check_points(self.points)

    @staticmethod
    def _check_points(points: list[tuple[float, float]]) -> None:
        for (raw, probability), (next_raw, next_probability) in pairwise(points):
            if not (raw < next_raw and probability <= next_probability):
                raise ValueError("the points of a calibration must rise")
        if points[0][1] < 0 or points[-1][1] > 1:
            raise ValueError("the probabilities of a calibration lie between 0 and 1")

    def probability(self, raw: float) -> float:
        """Return the probability that a document with this raw score is relevant."""
        if self.points is not None:
            return _between(self.points, raw)
        logit = (self.slope or 0.0) * raw + (self.intercept or 0.0)
        # Both branches compute the same function; each one cannot overflow on its side.
        return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


def _between(points: list[tuple[float, float]], raw: float) -> float:
    """Interpolate linearly; beyond the ends the value is that of the end."""
    place = bisect_right(points, raw, key=lambda point: point[0])
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1]
    (x, y), (next_x, next_y) = points[place - 1], points[place]
    return y + (next_y - y) * (raw - x) / (next_x - x)
