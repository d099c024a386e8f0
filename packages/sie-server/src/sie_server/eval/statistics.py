"""Is a difference more than chance? Paired tests and a bootstrap interval over queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from sie_server.offline.errors import needed

Test = Literal["randomisation", "t"]
DRAWS = 10_000
INTERVAL = (2.5, 97.5)  # percentiles: 95 % of the draws
CELLS = 2**22  # of one block of draws; bounds the memory
Values = NDArray[np.float64]


class Change(msgspec.Struct, frozen=True):
    """A metric before and after, as means over the same queries."""

    metric: str
    before: float
    after: float
    difference: float
    low: float  # of the bootstrap interval of the difference, 95 %
    high: float
    p: float  # of the two-sided paired test; 1 without any difference
    wins: int  # queries
    losses: int
    ties: int


def changes(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    test: Test = "randomisation",
    seed: int = 0,
) -> list[Change]:
    """Compare two rankings, given the values by metric and query. Both have the same metrics and queries."""
    names = list(before)
    queries = list(before[names[0]])
    old = _matrix(before, names, queries)
    new = _matrix(after, names, queries)
    differences = new - old
    low, high = bootstrap_interval(differences, seed)
    p = t_test(differences) if test == "t" else randomisation_test(differences, seed)
    return [
        Change(
            metric=name,
            before=float(old[:, i].mean()),
            after=float(new[:, i].mean()),
            difference=float(differences[:, i].mean()),
            low=float(low[i]),
            high=float(high[i]),
            p=float(p[i]),
            wins=int((differences[:, i] > 0).sum()),
            losses=int((differences[:, i] < 0).sum()),
            ties=int((differences[:, i] == 0).sum()),
        )
        for i, name in enumerate(names)
    ]


def _matrix(values: Mapping[str, Mapping[str, float]], names: list[str], queries: list[str]) -> Values:
    """Return the values as [queries, metrics]."""
    return np.array([[values[name][query] for name in names] for query in queries], dtype=np.float64)


def randomisation_test(differences: Values, seed: int = 0) -> Values:
    """Return p for each column: how often random signs give a mean as far from 0, of `DRAWS` draws.

    The observed signs count as a draw, so p is never 0.
    """
    random = np.random.default_rng(seed)
    observed = np.abs(differences.mean(axis=0))
    as_far = np.zeros(differences.shape[1])
    for draws in _blocks(len(differences)):
        signs = random.integers(0, 2, size=(draws, len(differences)), dtype=np.int8) * 2.0 - 1.0
        means = np.abs(signs @ differences) / len(differences)
        as_far += (means >= observed - 1e-12).sum(axis=0)  # the sums of equal values may differ by rounding
    result: Values = (as_far + 1) / (DRAWS + 1)
    return result


def t_test(differences: Values) -> Values:
    """Return p of Student's paired t test for each column."""
    stats = needed("scipy.stats")
    p = np.ones(differences.shape[1])
    varied = differences.std(axis=0) > 0  # the test is not defined for equal differences
    if len(differences) > 1 and varied.any():
        p[varied] = stats.ttest_1samp(differences[:, varied], 0.0).pvalue
    return p


def bootstrap_interval(differences: Values, seed: int = 0) -> tuple[Values, Values]:
    """Return the ends of the 95 % interval of each column's mean, over queries drawn with replacement."""
    random = np.random.default_rng(seed)
    count = len(differences)
    means = np.concatenate(
        [
            random.multinomial(count, np.full(count, 1 / count), size=draws) @ differences / count
            for draws in _blocks(count)
        ]
    )
    low, high = np.percentile(means, INTERVAL, axis=0)
    return low, high


def mean_tau(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float | None:
    """Return the mean of Kendall's tau over pairs of orders of the same places; None without an order of two.

    1: all orders are equal; -1: all are reversed.
    """
    stats = needed("scipy.stats")
    taus = [
        float(stats.kendalltau(np.argsort(one), np.argsort(two)).statistic)
        for one, two in pairs
        if len(one) > 1
    ]
    return sum(taus) / len(taus) if taus else None


def _blocks(count: int) -> Iterator[int]:
    """Yield numbers of draws that add up to `DRAWS`."""
    most = max(CELLS // count, 1)
    for start in range(0, DRAWS, most):
        yield min(most, DRAWS - start)
