"""Voyage's rerank API. Sources: docs.voyageai.com/reference/reranker-api and the client library `voyageai`.

Its client always sends `truncation`, which distinguishes its bodies from those of Cohere and Jina on the same path.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, documents_of, read_request
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    truncate = fields.take(bool, "truncation")
    documents = documents_of(fields)
    return read_request(fields, documents, truncate=truncate is not False, truncate_name="truncation")


def _text(document: Document) -> str:
    return document.text


def _write(answer: Answer) -> Json:
    return {
        "object": "list",
        "data": answer.results(_text),
        "model": answer.model,
        "usage": {"total_tokens": answer.tokens},
    }


def _write_error(error: SIEError) -> Json:
    return {"detail": error.message}


VOYAGE_EXAMPLE = EXAMPLE | {"truncation": True}
VOYAGE = Dialect(
    "Voyage", _read, _write, _write_error, VOYAGE_EXAMPLE, claims=marked_by("truncation", "top_k")
)
