"""Which answers a client accepts: the list that the tests of the TypeScript client read, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_sdk import ProtocolError

RULES = json.loads((Path(__file__).parents[2] / "support/requests/answers.json").read_text())
ITEMS = [{"id": one, "text": "t"} if one else {"text": "t"} for one in RULES["ids"]]


@pytest.mark.parametrize("case", RULES["cases"], ids=lambda case: case["name"])
def test_an_answer_is_checked(case: Any, connect: Callable[..., Any], answer: Callable[..., Any]) -> None:
    entries = [{"item_id": one, "score": _number(score), "rank": rank} for one, score, rank in case["scores"]]
    body = {"model": "m", "query_id": RULES["query_id"], "scores": entries} | case.get("more", {})
    client = connect(lambda request: answer(body, x_sie_request_id="r-1"))
    query = {"id": RULES["query_id"], "text": "q"}
    if case["names"] is None:
        assert client.score("m", query, ITEMS, options=case.get("options"))["scores"] == entries
        return
    with pytest.raises(ProtocolError) as caught:
        client.score("m", query, ITEMS, options=case.get("options"))
    assert case["names"] in caught.value.message
    assert caught.value.request_id == "r-1"
    assert not caught.value.retryable


def _number(value: float | str) -> float:
    return float(value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ([{"id": "x", "dense": None}, {"dense": None}], r"`items\[0\]\.id` is 'x', not 'a'"),
        ([{"id": "a", "dense": None}], "1 results for 2 items"),
        (
            [{"id": "a", "dense": [1.0, float("inf")]}, {"dense": None}],
            r"`items\[0\]\.dense\.values`.*finite",
        ),
    ],
)
def test_vectors_are_checked(
    vectors: list[Any], words: str, connect: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    import numpy as np

    def packed(values: list[float] | None) -> Any:
        return values and {"dims": 2, "dtype": "float32", "values": np.array(values, np.float32)}

    items = [one | {"dense": packed(one["dense"])} for one in vectors]
    client = connect(lambda request: answer({"model": "m", "items": items}))
    with pytest.raises(ProtocolError, match=words):
        client.encode("m", [{"id": "a", "text": "t"}, {"text": "u"}])


def test_an_answer_to_another_request_is_refused_and_its_connections_are_left(
    connect: Callable[..., Any], answer: Callable[..., Any]
) -> None:
    good = {"model": "m", "query_id": None, "scores": [{"item_id": "item-0", "score": 0.5, "rank": 0}]}
    seen: list[str] = []

    def shifted(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-sie-request-id"])
        return answer(good, x_sie_request_id=seen[max(0, len(seen) - 2)])

    client = connect(shifted)
    assert client.score("m", {"text": "q"}, [{"text": "a"}])["request_id"] == seen[0]
    with pytest.raises(ProtocolError, match=f"belongs to request {seen[0]}, not sdk-"):
        client.score("m", {"text": "q"}, [{"text": "a"}])
    assert len(set(seen)) == 2
