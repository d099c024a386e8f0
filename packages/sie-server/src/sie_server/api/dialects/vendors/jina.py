"""Jina's rerank, and that of servers that took it over. Facts: api.jina.ai/redoc; infinity's openapi.json.

A body of only model, query, documents and top_n may come from Cohere's v1 client as well, so the answer also carries
that one's `id` and `meta`, which Jina's has not.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Asked, Dialect, Document, Json
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, Positive, asked, documents_of, usage
from sie_server.api.dialects.vendors import cohere
from sie_server.errors import SIEError


def _read(fields: Fields) -> Asked:
    documents = documents_of(fields)
    most = fields.take(Positive, "max_tokens_per_doc", "max_doc_length")
    return asked(fields, documents, max_document_tokens=most)


def _write(answer: Answer) -> Json:
    return {
        "model": answer.model,
        "usage": usage(answer.tokens),
        "results": answer.results(cohere.as_sent),
        "id": answer.id,
        "meta": cohere.meta(answer, "1"),
    }


def _complain(error: SIEError) -> Json:
    return {"detail": error.message, "message": error.message}


def _read_infinity(fields: Fields) -> Asked:
    raw = bool(fields.take(bool, "raw_scores"))
    return asked(fields, documents_of(fields), raw=raw)


def _text(document: Document) -> str:
    return document.text


def _write_infinity(answer: Answer) -> Json:
    """Its documents are texts, where Jina's are objects."""
    return {
        "object": "rerank",
        "results": answer.results(_text),
        "model": answer.model,
        "usage": usage(answer.tokens),
        "id": answer.id,
    }


def _complain_infinity(error: SIEError) -> Json:
    error_type = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": error_type, "param": None, "code": error.status}}


JINA = Dialect("Jina", _read, _write, _complain, EXAMPLE)
INFINITY = Dialect("infinity", _read_infinity, _write_infinity, _complain_infinity, EXAMPLE)
