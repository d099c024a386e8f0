"""Splitting large requests: the parts, and one response of them."""

from __future__ import annotations

import random

import pytest
from msgspec import UNSET

pytest.importorskip("ray")

from sie_server.cluster.ingress.splitting import shares
from sie_server.errors import InferenceError
from sie_server.serving.finishing import DocumentScores, Part, Reading, finish, joined
from sie_server.wire import ChunkSpan, Item, Options, ScoreRequest

pytestmark = pytest.mark.unit
READING = Reading("m", Options(return_logits=True), "sigmoid", "probability", 128, paired=True)


def part(places: list[int], whole: Part) -> Part:
    """Return what a replica returns for these documents of a whole request."""
    scores = whole.documents
    chunks = scores.chunks and [scores.chunks[i] for i in places]
    documents = DocumentScores([scores.raw[i] for i in places], [scores.truncated[i] for i in places], chunks)
    return Part(
        whole.reading,
        documents,
        [whole.unread[i] for i in places],
        whole.query_truncated and 0 in places,
        whole.full,
        10 * len(places),
        whole.query_tokens,
    )


def whole(count: int, seed: int, *, chunks: bool) -> Part:
    rng = random.Random(seed)
    cut = [rng.random() < 0.3 for _ in range(count)]
    spans = [ChunkSpan(i, i + 5, 0, 2) for i in range(count)] if chunks else None
    raw = [rng.choice([rng.gauss(0, 3), 1.0]) for _ in range(count)]  # with ties
    reading = READING if not chunks else Reading("m", Options(top_n=3), "identity", "logit", 128, windows=2)
    unread = [one and rng.random() < 0.5 and not chunks for one in cut]
    return Part(reading, DocumentScores(raw, cut, spans), unread, True, True, 10 * count, 7)


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_response_of_parts_is_that_of_the_whole(seed: int, chunks: bool) -> None:
    rng = random.Random(seed)
    count = rng.randint(5, 40)
    request = ScoreRequest(
        Item(id="q", text="a query"), [Item(id=f"i{i}", text=str(rng.randint(0, 9))) for i in range(count)]
    )
    places = shares([item.text or "" for item in request.items], 3, 4)
    expected = whole(count, seed, chunks=chunks)
    found = finish(joined([part(own, expected) for own in places], places), request)
    assert len(places) > 1 and found == finish(expected, request)
    assert found.usage.input_tokens == 10 * count + 7 and found.warnings is not UNSET


def test_an_error_names_the_item_of_the_whole_request() -> None:
    request = ScoreRequest(Item(text="q"), [Item(text=str(i)) for i in range(6)])
    places = [[0, 2, 4], [1, 3, 5]]
    parts = [part(own, whole(6, 1, chunks=False)) for own in places]
    list.__setitem__(parts[1].documents.raw, 1, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(InferenceError, match=r"items\[3\]"):
        finish(joined(parts, places), request)


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("per_part", [1, 10, 64])
def test_shares_hold_every_document_once_and_are_of_similar_length(replicas: int, per_part: int) -> None:
    rng = random.Random(replicas)
    texts = [str(i) + "x" * rng.randint(0, 2000) for i in range(100)]
    places = shares(texts, replicas, per_part)
    assert sorted(i for own in places for i in own) == list(range(100))
    assert all(own == sorted(own) for own in places)
    assert len(places) == min(replicas, -(-100 // per_part))
    sizes = [sum(200 + len(texts[i]) for i in own) for own in places]
    assert max(sizes) - min(sizes) <= 2200


def test_equal_texts_stay_together() -> None:
    texts = [str(i % 7) for i in range(70)]
    for own in shares(texts, 3, 10):
        assert {i for i in range(70) if texts[i] in {texts[j] for j in own}} == set(own)
    assert len(shares(["same"] * 50, 4, 10)) == 1
