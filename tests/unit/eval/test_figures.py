"""Metrics equal their definitions, and the statistics those of scipy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats

from sie_server.eval.metrics import DEFAULT, parse_metrics, per_query
from sie_server.eval.report.plot import Point, pareto, short_names, ticks
from sie_server.eval.results import busy_seconds
from sie_server.eval.statistics import bootstrap_interval, changes, mean_tau, randomisation_test, t_test
from sie_server.offline.errors import OfflineError
from sie_server.offline.scorers import Answer
from support import rank_metrics


def test_metrics_equal_their_definitions() -> None:
    randomly = random.Random(3)
    documents = [f"d{i}" for i in range(60)]
    grades, rankings = {}, {}
    for i in range(40):
        judged = randomly.sample(documents, 12)
        grades[f"q{i}"] = {document: randomly.choice([0, 0, 1, 2, 3, -1]) for document in judged} | {"rel": 1}
        rankings[f"q{i}"] = randomly.sample([*documents, "rel"], randomly.choice([0, 3, 50]))
    names = ("ndcg@10", "ndcg", "mrr@10", "mrr", "recall@100", "recall@5", "map", "map@5", "p@1", "p@5")
    found = per_query(names, grades, rankings)
    for query, ranking in rankings.items():
        given = (ranking, grades[query])
        expected = {
            "ndcg@10": rank_metrics.ndcg(*given, 10),
            "ndcg": rank_metrics.ndcg(*given, 1000),
            "mrr@10": rank_metrics.reciprocal_rank(*given, 10),
            "mrr": rank_metrics.reciprocal_rank(*given, 1000),
            "recall@100": rank_metrics.recall(*given, 100),
            "recall@5": rank_metrics.recall(*given, 5),
            "map": rank_metrics.average_precision(*given),
            "map@5": rank_metrics.average_precision(ranking[:5], grades[query]),
            "p@1": rank_metrics.precision(*given, 1),
            "p@5": rank_metrics.precision(*given, 5),
        }
        assert {name: found[name][query] for name in names} == pytest.approx(expected, abs=1e-9), query


def test_names_of_metrics() -> None:
    assert parse_metrics("nDCG@10, map,map") == ("ndcg@10", "map")
    assert parse_metrics(",".join(DEFAULT)) == DEFAULT
    for wrong, said in (
        ("bleu", "'bleu'; known are ndcg"),
        ("ndcg@0", "unknown"),
        ("recall", "depth"),
        (" ", "empty"),
    ):
        with pytest.raises(OfflineError, match=said):
            parse_metrics(wrong)


@pytest.fixture
def differences() -> np.ndarray:
    """Return 60 differences of three metrics: clear, by chance, and none."""
    normal = np.random.default_rng(0).normal(size=(60, 3)) * 0.1
    return normal * [1, 1, 0] + [0.07, 0.005, 0]


def test_the_tests_agree_with_scipy(differences: np.ndarray) -> None:
    p = randomisation_test(differences)
    for column in range(2):
        reference = scipy.stats.permutation_test(
            (differences[:, column],),
            lambda values, axis: values.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=9999,
            rng=np.random.default_rng(1),
        )
        assert p[column] == pytest.approx(reference.pvalue, abs=0.015)
    assert p[2] == 1 and p[0] < 0.05 < p[1]
    both = scipy.stats.ttest_rel(differences[:, :2], np.zeros((60, 2))).pvalue
    assert t_test(differences) == pytest.approx([*both, 1.0])


def test_the_interval_agrees_with_scipy(differences: np.ndarray) -> None:
    low, high = bootstrap_interval(differences)
    reference = scipy.stats.bootstrap(
        (differences[:, 0],), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx(tuple(reference), abs=0.002)
    assert (low[2], high[2]) == (0, 0)
    assert bootstrap_interval(differences, seed=1)[0][0] != low[0]


def test_tau_compares_orders_by_their_pairs() -> None:
    # (0, 1, 2, 3) and (1, 0, 2, 3) differ in one of six pairs
    assert mean_tau([([0, 1, 2, 3], [1, 0, 2, 3])]) == pytest.approx(1 - 2 / 6)
    assert mean_tau([([2, 0, 1], [2, 0, 1]), ([0, 1, 2], [2, 1, 0]), ([0], [0])]) == pytest.approx(0)
    assert mean_tau([([0], [0])]) is None


def test_changes_count_queries() -> None:
    before = {"map": {"a": 0.5, "b": 0.5, "c": 0.5}}
    after = {"map": {"a": 1.0, "b": 0.25, "c": 0.5}}
    (one,) = changes(before, after)
    assert (one.wins, one.losses, one.ties) == (1, 1, 1)
    assert one.difference == pytest.approx(0.25 / 3) and one.low < one.difference < one.high
    assert changes(before, after) == [one]


def test_a_single_query_has_no_significance() -> None:
    for test in ("randomisation", "t"):
        (one,) = changes({"map": {"a": 0.0}}, {"map": {"a": 1.0}}, test)  # type: ignore[arg-type]
        assert one.p == 1 and (one.low, one.high) == (1, 1)


def test_the_front_has_models_that_no_other_beats() -> None:
    fast, slow, beaten, equal = Point("f", 1, 0.5), Point("s", 9, 0.7), Point("b", 5, 0.4), Point("e", 9, 0.6)
    assert pareto([beaten, equal, slow, fast]) == [fast, slow]


@pytest.mark.parametrize(
    ("low", "high"), [(464, 503), (8.3, 38), (0.002, 4000), (120, 290), (0.9, 1.1), (99.9, 100.1), (1, 1e9)]
)
def test_an_axis_has_a_few_round_ticks(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 6 and len(set(found)) == len(found)
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in found)


def test_names_in_the_plot_stay_distinct() -> None:
    assert short_names(["sie/mini-en", "encode:a/b", "a/c:law@fast"]) == ["mini-en", "encode:b", "c:law@fast"]
    assert short_names(["a/b", "c/b", "d"]) == ["a/b", "c/b", "d"]


def test_pauses_are_not_busy() -> None:
    def answer(started: float, seconds: float) -> Answer:
        return Answer([0], [1.0], [], False, "logit", started, seconds)

    assert busy_seconds([answer(10, 2), answer(11, 2), answer(50, 1), answer(50.25, 0.5)]) == pytest.approx(4)
    assert busy_seconds([]) == 0
