"""Which dialect a body is, and how its fields are taken: no server, no model."""

from __future__ import annotations

from typing import Any

import pytest

from sie_server.api.dialects import PATHS, RERANK, dialect_of, owner_of
from sie_server.api.dialects.dialect import warning_header
from sie_server.api.dialects.fields import Fields
from sie_server.errors import InvalidInput


@pytest.mark.parametrize(
    ("path", "marks", "name"),
    [
        ("/v1/rerank", {}, "Jina"),
        ("/v1/rerank", {"truncation": True}, "Voyage"),
        ("/v1/rerank", {"top_k": None}, "Voyage"),
        ("/v1/rerank", {"rank_fields": ["title"]}, "Cohere v1"),
        ("/v2/rerank", {"truncation": True}, "Cohere v2"),
        ("/rerank", {"texts": []}, "TEI"),
        ("/rerank", {"documents": []}, "vLLM"),
        ("/infinity/rerank", {"texts": []}, "infinity"),
        ("/score", {"text_1": ""}, "vLLM score"),
        ("/v1/ranking", {}, "NVIDIA NIM"),
    ],
)
def test_path_and_body_decide(path: str, marks: dict[str, Any], name: str) -> None:
    assert dialect_of(path, marks).name == name


def test_every_dialect_reads_its_own_example_and_knows_all_its_fields() -> None:
    for dialects in RERANK.values():
        for dialect in dialects:
            fields = Fields(dialect.example)
            asked = dialect.read(fields)
            fields.finish(strict=True)
            assert (asked.query, len(asked.documents)) == ("what do stars burn?", 2)
            assert asked.model is None and not asked.warnings


def test_paths_that_are_ours_have_no_dialect() -> None:
    for path in ("/v1/score/sie/mini-en", "/v1/encode/x", "/v1/models", "/v1/embeddings", "/healthz"):
        assert owner_of(path) is None
    assert all(owner_of(path) for path in PATHS)


def test_fields_are_taken_under_any_spelling_and_null_is_absent() -> None:
    fields = Fields({"top_k": 3, "top_n": None, "model": None})
    assert fields.take(int, "top_n", "top_k") == 3 and fields.spelled["top_n"] == "top_k"
    assert fields.take(str, "model") is None
    fields.finish(strict=True)
    with pytest.raises(InvalidInput, match="`top_n` and `top_k` mean the same"):
        Fields({"top_k": 3, "top_n": 3}).take(int, "top_n", "top_k")


@pytest.mark.parametrize(
    ("value", "kind", "path"), [("x", int, "$.a`"), (["x", 1], list[str], "$.a[1]`"), (1, bool, "$.a`")]
)
def test_a_wrong_type_is_told_with_its_path(value: Any, kind: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Fields({"a": value}).take(kind, "a")
    assert path in caught.value.message


def test_what_nobody_takes_is_refused_or_reported() -> None:
    fields = Fields({"a": 1, "b": 2})
    fields.take(int, "a")
    with pytest.raises(InvalidInput, match="unknown field `b`; known fields: a"):
        fields.finish(strict=True)
    fields.finish(strict=False)
    assert fields.warnings == ["unknown field `b` was ignored"]


def test_a_warning_cannot_break_out_of_its_header() -> None:
    assert warning_header([]) == {}
    [value] = warning_header(["a\r\nSet-Cookie: b", "é"]).values()
    assert value.isascii() and "\r" not in value and "\n" not in value
