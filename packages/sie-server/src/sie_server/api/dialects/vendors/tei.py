"""/rerank of text-embeddings-inference (TEI). Source: its docs/openapi.json.

TEI serves one model, which its bodies do not name. Here that is the first one served that scores; a body may contain
`model`.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import documents_of, read_request
from sie_server.errors import InvalidInput, SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    raw = bool(fields.take(bool, "raw_scores"))
    return read_request(fields, documents, truncate=_truncate(fields), raw=raw)


def _truncate(fields: Fields) -> bool:
    """Read `truncate`. By default long texts are truncated, as with TEI's auto_truncate, and reported."""
    truncate = fields.take(bool, "truncate") is not False
    direction = fields.take(str, "truncation_direction") or "right"
    if direction.lower() != "right" and truncate:
        raise InvalidInput("texts are truncated only at the end; send 'Right' - at `$.truncation_direction`")
    return truncate


def _write(answer: Answer) -> list[Json]:
    return [
        {"index": hit.index, "score": hit.score} | ({"text": hit.document.text} if hit.document else {})
        for hit in answer.hits
    ]


def _write_error(error: SIEError) -> Json:
    return {"error": error.message, "error_type": _error_type(error.status)}


def _error_type(status: int) -> str:
    if status in (429, 503):
        return "Overloaded"
    return "Validation" if status < 500 else "Backend"


EXAMPLE = {"query": "what do stars burn?", "texts": ["Stars burn hydrogen.", "Rain falls."]}
TEI = Dialect("TEI", _read, _write, _write_error, EXAMPLE, claims=marked_by("texts"))
