"""The demo's passages and queries are well formed, and still mislead keyword search where they should."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, Any]]:
    return read("corpus.jsonl")


@pytest.fixture(scope="module")
def queries() -> list[dict[str, Any]]:
    return read("queries.jsonl")


def test_passages_are_complete(corpus: list[dict[str, Any]]) -> None:
    assert len(corpus) >= 60
    for passage in corpus:
        assert list(passage) == ["id", "title", "text"]
        assert 0 < len(passage["title"]) <= 40, passage["id"]
        assert 60 <= len(passage["text"].split()) <= 130, passage["id"]


def test_nothing_occurs_twice(corpus: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    for key in ("id", "title", "text"):
        assert len({passage[key] for passage in corpus}) == len(corpus)
    for key in ("id", "text"):
        assert len({query[key] for query in queries}) == len(queries)


def test_subjects_are_mixed(corpus: list[dict[str, Any]]) -> None:
    subjects = Counter(passage["id"].split("-")[0] for passage in corpus)
    assert len(subjects) >= 10
    assert min(subjects.values()) >= 4


def test_queries_point_at_passages(corpus: list[dict[str, Any]], queries: list[dict[str, Any]]) -> None:
    ids = {passage["id"] for passage in corpus}
    assert len(queries) >= 6
    for query in queries:
        assert list(query) == ["id", "text", "relevant"]
        assert query["text"].strip()
        assert query["relevant"]
        assert set(query["relevant"]) <= ids


def test_keywords_find_the_passages_but_mostly_rank_others_first(queries: list[dict[str, Any]]) -> None:
    """Reranking can only reorder passages that were found. One query needs no reranking, to keep the demo honest."""
    pytest.importorskip("bm25s")
    from demo import FirstStage, load

    first_stage = FirstStage(load("corpus.jsonl"))
    places = []
    for query in queries:
        found = first_stage.search(query["text"])
        ids = [hit.id for hit in found if hit.score > 0]
        assert set(query["relevant"]) <= set(ids), query["id"]
        places.append(min(ids.index(i) for i in query["relevant"]))
    assert sum(place > 0 for place in places) >= 6
    assert 0 in places
