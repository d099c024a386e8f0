"""A small body cannot cause more tokens than a request may have."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from sie_server.catalog import EMBEDDED
from sie_server.engine.text import slices
from sie_server.engine.text.slices import LEAST_TOKENS, at_most, count_sequence
from sie_server.errors import InvalidInput
from sie_server.serving.requests import inspection
from support.servers.inprocess import asking
from support.waiting import eventually

LETTERS = "a b c d e f g h i j k " * 40


@pytest.fixture(scope="module")
def client() -> Any:
    with asking({"sie/mini-en": EMBEDDED / "mini-en"}) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_sequences_are_counted_before_they_are_built() -> None:
    count_sequence(10**9)  # no limit outside a request
    with at_most(1000):
        count_sequence(900)
        count_sequence(1)
        with pytest.raises(InvalidInput, match="more than 1,000 tokens"):
            count_sequence(1)
    with at_most(10 * LEAST_TOKENS):
        for _ in range(10):
            count_sequence(0)
        with pytest.raises(InvalidInput):
            count_sequence(0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score/sie/mini-en", {"options": {"long_document": "chunk", "chunk_overlap": 250}}),
        ("/v1/score/sie/mini-en", {}),
        ("/v1/encode/sie/mini-en", {}),
        ("/v1/inspect/sie/mini-en", {"options": {"long_document": "chunk", "chunk_overlap": 250}}),
    ],
    ids=["windows", "documents", "texts", "inspect"],
)
def test_a_request_with_too_many_tokens_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(slices, "MOST_TOKENS", 5_000)
    monkeypatch.setattr(inspection, "MOST_TOKENS", 5_000)
    items = [{"text": f"{number} {LETTERS}"} for number in range(40)]
    query = {} if "encode" in path else {"query": {"text": "a"}}
    answer = client.post(path, json={**query, "items": items, **body})
    assert answer.status_code == 400, answer.text[:300]
    assert "more than 5,000 tokens" in answer.json()["detail"]["message"]
    assert client.post(path, json={**query, "items": items[:2]}).status_code == 200


def test_inspect_shows_few_tokens_of_many_windows(client: TestClient) -> None:
    """100 documents of 880 characters are 6,400 windows of 256 tokens."""
    body = {
        "query": {"text": "a"},
        "items": [{"text": LETTERS}] * 100,
        "options": {"long_document": "chunk", "chunk_overlap": 253},
    }
    answer = client.post("/v1/inspect/sie/mini-en", json=body)
    assert answer.status_code == 400 and "250,000 tokens" in answer.json()["detail"]["message"]
