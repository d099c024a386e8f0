"""A threshold for a wanted precision or recall, with intervals."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np

from sie_server.eval.calibration.pairs import Floats, Pairs
from sie_server.eval.data.collection import DataError
from sie_server.eval.statistics import INTERVAL

Goal = Literal["precision", "recall"]
DRAWS = 2000
Z = 1.959964  # of the normal distribution: 95 % lie within


class Share(msgspec.Struct, frozen=True):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


class Threshold(msgspec.Struct, frozen=True):
    """Pairs with at least this probability count as relevant."""

    goal: Goal
    wanted: float
    probability: float
    precision: Share
    recall: Share


def threshold_for(goal: Goal, wanted: float, predicted: Floats, pairs: Pairs, seed: int = 0) -> Threshold:
    """Return the threshold that reaches the goal and is best in the other one.

    Raises:
        DataError: no threshold reaches the goal.
    """
    order = np.argsort(-predicted, kind="stable")
    values = predicted[order]
    last = np.append(values[1:] != values[:-1], True)  # equal probabilities are on the same side
    found = np.cumsum(pairs.relevant[order])
    precision, recall = found / np.arange(1, len(values) + 1), found / pairs.relevant.sum()
    reached = np.flatnonzero(last & ((precision if goal == "precision" else recall) >= wanted - 1e-12))
    if not len(reached):
        best = float(precision[last].max())
        raise DataError(
            f"no threshold reaches a {goal} of {wanted:g} on these judgments; the highest precision is {best:.3f}"
        )
    place = reached[-1] if goal == "precision" else reached[0]
    chosen = float(values[place])
    shares = _intervals(predicted >= chosen, pairs, seed)
    return Threshold(
        goal,
        wanted,
        chosen,
        Share(float(precision[place]), *shares["precision"]),
        Share(float(recall[place]), *shares["recall"]),
    )


def _intervals(selected: np.ndarray[Any, Any], pairs: Pairs, seed: int) -> dict[str, tuple[float, float]]:
    """Return the intervals of precision and recall.

    They are over queries drawn with replacement, and at least as wide as those of independent pairs: draws of a few
    queries that are alike have no spread at all.
    """
    queries, number = np.unique(pairs.query, return_inverse=True)
    counts = [
        np.bincount(number, weights=each, minlength=len(queries))
        for each in (selected & pairs.relevant, selected, pairs.relevant)
    ]
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=DRAWS)
    right, chosen, relevant = (draws @ count for count in counts)
    found = {}
    for name, whole in (("precision", chosen), ("recall", relevant)):
        shares = right[whole > 0] / whole[whole > 0]
        low, high = np.percentile(shares, INTERVAL)
        one, two = wilson(
            int(counts[0].sum()), int((selected if name == "precision" else pairs.relevant).sum())
        )
        found[name] = min(float(low), one), max(float(high), two)
    return found


def wilson(count: int, whole: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the share `count` of `whole` independent pairs."""
    square = Z**2 / whole
    middle = (count / whole + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(count / whole * (1 - count / whole) / whole + square / whole / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)
