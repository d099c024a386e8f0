"""Dialects of other vendors: recognition by path and body, and reading of fields, without server or model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sie_server.api import codec
from sie_server.api.dialects import PATHS, RERANK, dialect_of, owner_of
from sie_server.api.dialects.dialect import Document, RerankRequest, answer_of, warning_header
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.vendors.tei import PREDICT_PAIR
from sie_server.catalog import Calibration, CatalogEntry, catalog, plain_calibration
from sie_server.catalog.entries import model_of
from sie_server.errors import InvalidInput
from sie_server.serving.activation import activate
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import ScoreEntry, ScoreResponse, ScoreType, Usage


def fields_of(body: Any) -> Fields:
    return Fields(codec.decode(msgspec.json.encode(body), codec.JSON, dict[str, msgspec.Raw]))


@pytest.mark.parametrize(
    ("path", "marks", "name"),
    [
        ("/v1/rerank", {}, "Jina"),
        ("/v1/rerank", {"truncation": True}, "Voyage"),
        ("/v1/rerank", {"top_k": None}, "Voyage"),
        ("/v1/rerank", {"rank_fields": ["title"]}, "Cohere v1"),
        ("/v2/rerank", {"truncation": True}, "Cohere v2"),
        ("/v1/rerank", {"use_activation": False}, "vLLM"),
        ("/v1/reranking", {"input": []}, "Mixedbread"),
        ("/v1/reranking", {"documents": []}, "Jina"),
        ("/rerank", {"query": "", "documents": [], "property": ""}, "Weaviate"),
        ("/rerank", {"query": "", "documents": []}, "vLLM or Weaviate"),
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
            fields = fields_of(dialect.example)
            asked = dialect.read(fields)
            fields.finish(strict=True)
            assert asked.queries[0] == "what do stars burn?"
            assert len(asked.documents) == (1 if dialect is PREDICT_PAIR else 2)
            assert asked.model is None and not asked.warnings


def test_the_servers_own_paths_have_no_dialect() -> None:
    for path in ("/v1/score/sie/mini-en", "/v1/encode/x", "/v1/models", "/v1/embeddings", "/healthz"):
        assert owner_of(path) is None
    assert all(owner_of(path) for path in PATHS)


def test_fields_are_taken_under_any_spelling_and_null_is_absent() -> None:
    fields = fields_of({"top_k": 3, "top_n": None, "model": None})
    assert fields.take(int, "top_n", "top_k") == 3 and fields.spelled["top_n"] == "top_k"
    assert fields.take(str, "model") is None
    fields.finish(strict=True)
    with pytest.raises(InvalidInput, match="`top_n` and `top_k` mean the same"):
        fields_of({"top_k": 3, "top_n": 3}).take(int, "top_n", "top_k")


@pytest.mark.parametrize(
    ("value", "kind", "path"), [("x", int, "$.a`"), (["x", 1], list[str], "$.a[1]`"), (2, bool, "$.a`")]
)
def test_a_wrong_type_is_reported_with_its_path(value: Any, kind: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fields_of({"a": value}).take(kind, "a")
    assert path in caught.value.message


def test_unknown_fields_are_refused_or_reported() -> None:
    fields = fields_of({"a": 1, "b": 2})
    fields.take(int, "a")
    with pytest.raises(InvalidInput, match="unknown field `b`; known fields: a"):
        fields.finish(strict=True)
    fields.finish(strict=False)
    assert fields.warnings == ["unknown field `b` was ignored"]


def test_a_warning_cannot_break_out_of_its_header() -> None:
    assert warning_header([]) == {}
    [value] = warning_header(["a\r\nSet-Cookie: b", "é"]).values()
    assert value.isascii() and "\r" not in value and "\n" not in value


def answered(raw: bool, score_type: ScoreType, calibration: Calibration | None) -> list[float]:
    request = RerankRequest(None, ["q"], [Document(text, text) for text in "ab"], raw=raw)
    entries = [ScoreEntry("1", 1.25, 0), ScoreEntry("0", -0.5, 1)]
    answer = ScoreResponse("m", None, entries, Usage(1), score_type)
    return [hit.score for hit in answer_of(request, answer, "id", RequestTiming(), calibration).hits]


def test_similarities_become_probabilities_if_the_model_is_calibrated() -> None:
    calibration = Calibration(slope=4.0, intercept=-3.0)
    expected = [calibration.probability(value) for value in (1.25, -0.5)]
    assert answered(False, "maxsim", calibration) == expected
    assert all(0 < value < 1 for value in expected)
    assert answered(False, "maxsim", None) == answered(True, "maxsim", calibration) == [1.25, -0.5]
    assert answered(False, "logit", calibration) == [activate(value, "sigmoid") for value in (1.25, -0.5)]


def test_a_calibration_of_other_options_does_not_apply_to_plain_requests() -> None:
    fitted = {"slope": 4.0, "intercept": -3.0}
    for options, profile, applies in (
        ({}, {}, True),
        ({"score_mode": "dense"}, {}, False),
        ({}, {"score_mode": "dense"}, False),
        ({}, {"top_n": 3}, True),
    ):
        entry = msgspec.convert(
            {"id": "m", "source": "org/m", "license": "mit", "description": "", "outputs": ["score"],
             "max_seq_length": 64, "profiles": {"default": profile}, "calibration": {**fitted, "options": options}},
            CatalogEntry,
        )  # fmt: skip
        assert (plain_calibration(model_of(entry)) is not None) == applies
    mini = catalog()["sie/mini-en"]
    assert plain_calibration(mini) and plain_calibration(replace(mini, source="/models/other")) is None
