"""Ranking: order, ties, ids, activation, and an error for scores that are not numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sie_server.errors import InferenceError
from sie_server.serving.activation import activate
from sie_server.serving.finishing import DocumentScores, rank
from sie_server.wire import Item, Options

THREE = [Item(id="a"), Item(), Item(id="a")]


def ranked(
    raw: list[float], activation: str = "identity", top_n: int | None = None
) -> list[tuple[str, float, int]]:
    items = (THREE * 4)[: len(raw)]
    entries = rank(items, DocumentScores(raw, [False] * len(raw)), activation, Options(top_n=top_n))
    return [(e.item_id, e.score, e.rank) for e in entries]


def test_best_first_with_generated_and_duplicate_ids() -> None:
    assert ranked([0.5, 2.0, -1.0]) == [("item-1", 2.0, 0), ("a", 0.5, 1), ("a", -1.0, 2)]


def test_ties_keep_the_order_of_the_request() -> None:
    assert [e[0] for e in ranked([1.0, 1.0, 1.0])] == ["a", "item-1", "a"]


def test_logits_that_sigmoid_rounds_together_stay_in_order() -> None:
    entries = ranked([40.0, 41.0, 39.0], "sigmoid")
    assert entries[0][0] == "item-1"
    assert entries[0][1] == entries[1][1] == 1.0


def test_top_n_keeps_the_best() -> None:
    assert [e[2] for e in ranked([1.0, 3.0, 2.0], top_n=2)] == [0, 1]
    assert len(ranked([1.0, 3.0, 2.0], top_n=9)) == 3


@pytest.mark.parametrize("logit", [-1000.0, -30.0, -1.5, 0.0, 1e-9, 2.0, 30.0, 1000.0])
def test_sigmoid_is_exact_and_never_overflows(logit: float) -> None:
    with np.errstate(over="ignore"):
        expected = float(1 / (1 + np.exp(np.longdouble(-logit))))
    assert math.isclose(activate(logit, "sigmoid"), expected, rel_tol=1e-12, abs_tol=1e-300)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_a_number_is_an_error_that_names_the_item(bad: float) -> None:
    with pytest.raises(InferenceError, match=r"\$\.items\[1\]"):
        ranked([1.0, bad, 0.0])
