"""Isaacus's reranking API. Source: the client library `isaacus` 0.22."""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import documents_of, read_request
from sie_server.errors import SIEError

NOT_SPLIT = "documents are not split; each is read up to the model's limit"


def _read(fields: Fields) -> RerankRequest:
    fields.refuse_true("is_iql", "queries are read as text, not as Isaacus Query Language")
    for name in ("scoring_method", "chunking_options"):
        fields.has_no_effect(name, NOT_SPLIT)
    return read_request(fields, documents_of(fields))


def _write(answer: Answer) -> Json:
    results = [{"index": hit.index, "score": hit.score} for hit in answer.hits]
    return {"results": results, "usage": {"input_tokens": answer.tokens}}


def _write_error(error: SIEError) -> Json:
    return {"type": error.code, "detail": error.message}


EXAMPLE = {"query": "what do stars burn?", "texts": ["Stars burn hydrogen.", "Rain falls."]}
ISAACUS = Dialect("Isaacus", _read, _write, _write_error, EXAMPLE)
