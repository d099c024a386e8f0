"""Calibrations, their quality on held-out queries, thresholds, and the entry in the models directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.stats
import yaml
from sklearn.metrics import brier_score_loss

from sie_server.catalog import Calibration, CatalogEntry, ModelsDirectory, catalog
from sie_server.eval.calibration.entry import as_yaml, store
from sie_server.eval.calibration.fit import fit, held_out, probabilities, quality
from sie_server.eval.calibration.pairs import Pairs, judged_pairs
from sie_server.eval.calibration.run import own_scores
from sie_server.eval.calibration.threshold import threshold_for
from sie_server.eval.data.collection import Collection, DataError
from sie_server.eval.first_stage import Candidates
from sie_server.offline.scorers import Answer
from sie_server.wire import Profile

SLOPE, INTERCEPT = 2.0, -1.0


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Return 3,000 pairs of 300 queries, whose relevance is drawn from a logistic curve of their score."""
    random = np.random.default_rng(0)
    raw = random.normal(size=3000) * 2
    relevant = random.random(3000) < 1 / (1 + np.exp(-(SLOPE * raw + INTERCEPT)))
    return Pairs(raw, relevant, np.repeat(np.arange(300), 10))


def test_a_logistic_curve_is_found_again(pairs: Pairs) -> None:
    found = fit(pairs, "platt")
    assert found.slope == pytest.approx(SLOPE, abs=0.15) and found.intercept == pytest.approx(
        INTERCEPT, abs=0.15
    )
    shifted = fit(replace(pairs, raw=pairs.raw / 100 + 5), "platt")  # the unit of the scores does not matter
    assert probabilities(shifted, pairs.raw / 100 + 5) == pytest.approx(
        probabilities(found, pairs.raw), abs=1e-3
    )


def test_a_rising_curve_of_any_form_is_found(pairs: Pairs) -> None:
    found = fit(pairs, "isotonic")
    grid = np.linspace(-3, 3, 25)
    predicted = probabilities(found, grid)
    assert (np.diff(predicted) >= 0).all()
    assert predicted == pytest.approx(1 / (1 + np.exp(-(SLOPE * grid + INTERCEPT))), abs=0.12)
    middle = probabilities(found, np.sort(pairs.raw)[200:-200])
    assert (np.diff(middle) > 0).mean() > 0.99  # the steps make no ties


def test_probabilities_of_held_out_pairs_do_not_depend_on_their_judgments(pairs: Pairs) -> None:
    before = held_out(pairs, "platt", folds=5, seed=1)
    other = pairs.relevant.copy()
    other[:10] = ~other[:10]  # those of query 0
    after = held_out(replace(pairs, relevant=other), "platt", folds=5, seed=1)
    assert (after[:10] == before[:10]).all() and (after[10:] != before[10:]).any()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibrated_probabilities_are_better_than_sigmoids(pairs: Pairs, method: str) -> None:
    before = quality(own_scores(pairs.raw, is_logit=True), pairs.relevant)
    predicted = held_out(pairs, method, folds=5)  # type: ignore[arg-type]
    after = quality(predicted, pairs.relevant)
    assert after.brier == pytest.approx(brier_score_loss(pairs.relevant, predicted))
    assert after.brier < before.brier and after.ece < 0.04 < before.ece


def test_the_calibration_error_is_the_distance_by_tenths() -> None:
    predicted, relevant = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    found = quality(predicted, relevant)
    assert found.ece == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)
    assert [(each.pairs, each.observed) for each in found.bins] == [(2, 0.5), (2, 1.0)]


def test_similarities_below_zero_are_no_probabilities() -> None:
    assert own_scores(np.array([-0.5, 0.25, 1.5]), is_logit=False).tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("goal", ["precision", "recall"])
def test_thresholds_are_the_best_that_reach_the_goal(pairs: Pairs, goal: str) -> None:
    predicted = np.round(held_out(pairs, "platt", folds=5), 2)  # with ties
    found = threshold_for(goal, 0.9, predicted, pairs)  # type: ignore[arg-type]
    reached = []
    for value in np.unique(predicted):
        chosen = predicted >= value
        precision, recall = pairs.relevant[chosen].mean(), pairs.relevant[chosen].sum() / pairs.relevant.sum()
        if (precision if goal == "precision" else recall) >= 0.9:
            reached.append((recall if goal == "precision" else precision, value, precision, recall))
    _, value, precision, recall = max(reached)
    assert found.probability == value
    assert (found.precision.value, found.recall.value) == (pytest.approx(precision), pytest.approx(recall))
    for share in (found.precision, found.recall):
        assert share.low < share.value < share.high < share.low + 0.1


def test_a_few_queries_that_are_alike_have_a_wide_interval() -> None:
    """Every draw of these queries has a precision of 0.5."""
    raw = np.array([0.9, 0.1] * 3)
    alike = Pairs(raw=raw, relevant=raw > 0.5, query=np.repeat(np.arange(3), 2))
    found = threshold_for("precision", 0.5, np.full(6, 0.5), alike)
    reference = scipy.stats.binomtest(3, 6).proportion_ci(method="wilson")
    assert (found.precision.low, found.precision.high) == pytest.approx((reference.low, reference.high))
    reference = scipy.stats.binomtest(3, 3).proportion_ci(method="wilson")
    assert (found.recall.low, found.recall.high) == pytest.approx((reference.low, 1))


def test_a_goal_out_of_reach_is_named(pairs: Pairs) -> None:
    noise = np.random.default_rng(0).random(len(pairs))
    with pytest.raises(DataError, match=r"no threshold reaches a precision of 0\.99.*highest precision is"):
        threshold_for("precision", 0.99, np.round(noise, 1), pairs)


def test_judgments_that_cannot_be_calibrated_are_named(pairs: Pairs) -> None:
    for method in ("platt", "isotonic"):
        with pytest.raises(DataError, match="do not rise with relevance"):
            fit(replace(pairs, raw=-pairs.raw), method)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="one class only"):
            fit(replace(pairs, relevant=np.ones(3000, dtype=bool)), method)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="2 queries are fewer than --folds 5"):
        held_out(pairs.of(pairs.query < 2), "platt", folds=5)


def test_only_judged_candidates_count_unless_the_user_says_so() -> None:
    collection = Collection("s", {"a": "A", "b": "B", "c": "C"}, {"q": "?"}, {"q": {"a": 2, "b": 0}})
    candidates = Candidates("x", {"q": ["c", "b", "a"]}, {"q": [3, 2, 1]})
    answers = {"q": Answer([0, 1, 2], [0.5, 0.25, 0.75], [], False, "logit", 0, 1)}
    found = judged_pairs([(collection, candidates, answers)], "leave-out")
    assert (found.raw.tolist(), found.relevant.tolist()) == ([0.25, 0.75], [False, True])
    assert len(judged_pairs([(collection, candidates, answers)], "irrelevant")) == 3
    positive = replace(collection, grades={"q": {"a": 1}})
    with pytest.raises(DataError, match=r"one class only.*--unjudged irrelevant"):
        judged_pairs([(positive, candidates, answers)], "leave-out")
    with pytest.raises(DataError, match="no judged relevant document"):
        judged_pairs(
            [(replace(collection, grades={"q": {"b": 0, "z": 1}}), candidates, answers)], "irrelevant"
        )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"slope": 1.0},
        {"slope": -1.0, "intercept": 0.0},
        {"slope": 1.0, "intercept": 0.0, "points": [(0.0, 0.0), (1.0, 1.0)]},
        {"points": [(0.0, 0.0)]},
        {"points": [(0.0, 0.5), (0.0, 0.6)]},
        {"points": [(0.0, 0.5), (1.0, 0.4)]},
        {"points": [(0.0, 0.5), (1.0, 1.5)]},
    ],
)
def test_calibrations_that_are_no_rising_function_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Calibration)


def test_values_of_a_calibration() -> None:
    platt = Calibration(slope=2.0, intercept=-1.0)
    assert platt.probability(0.5) == 0.5 and platt.probability(-1e6) == 0 and platt.probability(1e6) == 1
    points = Calibration(points=[(0.0, 0.2), (1.0, 0.2), (2.0, 1.0)])
    assert [points.probability(raw) for raw in (-1, 0, 0.5, 1, 1.5, 2, 3)] == pytest.approx(
        [0.2, 0.2, 0.2, 0.2, 0.6, 1.0, 1.0]
    )


def test_an_entry_is_stored_over_that_of_the_same_model(tmp_path: Path) -> None:
    known = catalog()["sie/mini-en"].entry
    assert known is not None
    entry = msgspec.structs.replace(
        known,
        calibration=Calibration(points=[(0.0, 0.0), (1.5, 1.0)], note="ü"),
        profiles={"calibrated": Profile(normalize="calibrated")},
    )
    assert msgspec.convert(yaml.safe_load(as_yaml(entry)), CatalogEntry) == entry
    (tmp_path / "mine.yaml").write_text("id: sie/mini-en\n")
    (tmp_path / "broken.yaml").write_text(":")
    assert store(entry, str(tmp_path)) == tmp_path / "mine.yaml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml", "mine.yaml"]
    found = ModelsDirectory(str(tmp_path), report=False).scan()["sie/mini-en"]
    assert found.calibration == entry.calibration and list(found.profiles) == ["calibrated"]
