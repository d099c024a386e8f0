"""Fitting a calibration, and its probabilities for pairs that it was not fitted to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from sie_server.catalog import Calibration
from sie_server.eval.calibration.pairs import Floats, Pairs
from sie_server.eval.data.collection import DataError
from sie_server.offline.errors import needed

Method = Literal["platt", "isotonic"]
BINS = 10


class Bin(msgspec.Struct, frozen=True):
    """The pairs whose predicted probability lies in a tenth."""

    pairs: int
    predicted: float  # mean
    observed: float  # share of relevant pairs


class Quality(msgspec.Struct, frozen=True):
    """How well probabilities agree with judgments."""

    brier: float  # mean squared error; 0 is best
    ece: float  # expected calibration error: mean distance of predicted and observed, by tenths
    bins: list[Bin]


def fit(pairs: Pairs, method: Method) -> Calibration:
    """Fit a calibration.

    Raises:
        DataError: one class only, or scores that do not rise with relevance.
        OfflineError: scikit-learn is not installed.
    """
    if pairs.relevant.all() or not pairs.relevant.any():
        raise DataError(
            "a part of the judgments has one class only; judge more queries, or use fewer --folds"
        )
    return _platt(pairs) if method == "platt" else _isotonic(pairs)


def _platt(pairs: Pairs) -> Calibration:
    linear: Any = needed("sklearn.linear_model")
    center, width = float(pairs.raw.mean()), float(pairs.raw.std()) or 1.0
    scaled = ((pairs.raw - center) / width).reshape(
        -1, 1
    )  # so that the penalty means the same for every scale
    model = linear.LogisticRegression(C=1e4, max_iter=1000).fit(scaled, pairs.relevant)
    slope = float(model.coef_[0, 0]) / width
    if slope <= 0:
        raise DataError(
            "the scores do not rise with relevance on these judgments, so they cannot be calibrated; check the "
            "grades and the model"
        )
    return Calibration(slope=slope, intercept=float(model.intercept_[0]) - slope * center)


def _isotonic(pairs: Pairs) -> Calibration:
    """Fit a rising step function, and join the middles of its steps, so that scores in a step stay distinct."""
    isotonic: Any = needed("sklearn.isotonic")
    order = np.argsort(pairs.raw, kind="stable")
    raw, steps = (
        pairs.raw[order],
        isotonic.IsotonicRegression().fit_transform(
            pairs.raw[order], pairs.relevant[order].astype(np.float64)
        ),
    )
    points = [(float(raw[steps == step].mean()), float(step)) for step in np.unique(steps)]
    if len(points) < 2 or any(one[0] >= two[0] for one, two in pairwise(points)):
        raise DataError(
            "the scores do not rise with relevance on these judgments, so they cannot be calibrated; check the "
            "grades and the model"
        )
    return Calibration(points=points)


def probabilities(calibration: Calibration, raw: Floats) -> Floats:
    """Return the probabilities of raw scores."""
    return np.array([calibration.probability(float(value)) for value in raw])


def held_out(pairs: Pairs, method: Method, folds: int, seed: int = 0) -> Floats:
    """Return the probability of every pair by a calibration that has not seen the pair's query.

    Raises:
        DataError: there are fewer queries than folds, or as `fit`.
    """
    queries = np.unique(pairs.query)
    if len(queries) < folds:
        raise DataError(f"{len(queries)} queries are fewer than --folds {folds}; judge more queries")
    np.random.default_rng(seed).shuffle(queries)
    found = np.zeros(len(pairs))
    for part in np.array_split(queries, folds):
        outside = np.isin(pairs.query, part)
        found[outside] = probabilities(fit(pairs.of(~outside), method), pairs.raw[outside])
    return found


def quality(predicted: Floats, relevant: np.ndarray[Any, Any]) -> Quality:
    """Compare probabilities with judgments."""
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        if inside.any():
            bins.append(
                Bin(int(inside.sum()), float(predicted[inside].mean()), float(relevant[inside].mean()))
            )
    ece = sum(each.pairs * abs(each.predicted - each.observed) for each in bins) / len(predicted)
    return Quality(float(np.mean((predicted - relevant) ** 2)), ece, bins)
