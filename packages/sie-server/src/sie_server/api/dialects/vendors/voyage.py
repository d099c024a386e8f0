"""Voyage's rerank. Facts: docs.voyageai.com/reference/reranker-api and the client library `voyageai`.

Its client always sends `truncation`, which tells its bodies from Cohere's and Jina's on the same path.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Asked, Dialect, Document, Json, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, asked, documents_of
from sie_server.errors import SIEError


def _read(fields: Fields) -> Asked:
    truncate = fields.take(bool, "truncation")
    documents = documents_of(fields)
    return asked(fields, documents, truncate=truncate is not False, truncate_name="truncation")


def _text(document: Document) -> str:
    return document.text


def _write(answer: Answer) -> Json:
    return {
        "object": "list",
        "data": answer.results(_text),
        "model": answer.model,
        "usage": {"total_tokens": answer.tokens},
    }


def _complain(error: SIEError) -> Json:
    return {"detail": error.message}


VOYAGE_EXAMPLE = EXAMPLE | {"truncation": True}
VOYAGE = Dialect("Voyage", _read, _write, _complain, VOYAGE_EXAMPLE, claims=marked_by("truncation", "top_k"))
