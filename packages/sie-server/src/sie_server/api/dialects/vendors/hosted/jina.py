"""Jina's rerank API, and infinity's, which is derived from it. Sources: api.jina.ai/redoc; infinity's openapi.json.

A body of only model, query, documents and top_n may also come from clients of Cohere's v1, Xinference, Together,
Contextual or SiliconFlow. The response has the keys of all of them.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, Positive, documents_of, read_request, usage
from sie_server.api.dialects.vendors.hosted import cohere
from sie_server.errors import InvalidInput, SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    most = fields.take(Positive, "max_tokens_per_doc", "max_doc_length")
    cohere.no_effect_on_answers(fields)
    _read_contextual(fields, len(documents))
    return read_request(fields, documents, max_document_tokens=most)


def _read_contextual(fields: Fields, documents: int) -> None:
    """Read Contextual's `metadata`: a text per document, which only its own service puts into the prompt."""
    metadata = fields.take(list[str], "metadata")
    if metadata and len(metadata) != documents:
        raise InvalidInput(
            f"{len(metadata)} texts for {documents} documents; send one for each - at `{fields.at('metadata')}`"
        )
    if metadata and any(metadata):
        fields.warnings.append("`metadata` was ignored: put it into the documents")


def _write(answer: Answer) -> Json:
    return {
        "object": "rerank",  # Together's
        "model": answer.model,
        "usage": usage(answer.tokens),
        "results": answer.results(cohere.as_sent),
        "id": answer.id,
        "meta": cohere.meta(answer, "1"),
    }


def _write_error(error: SIEError) -> Json:
    return {"detail": error.message, "message": error.message}


def _read_infinity(fields: Fields) -> RerankRequest:
    raw = bool(fields.take(bool, "raw_scores"))
    return read_request(fields, documents_of(fields), raw=raw)


def _text(document: Document) -> str:
    return document.text


def _write_infinity(answer: Answer) -> Json:
    """Write infinity's response. Its documents are strings; Jina's are objects."""
    return {
        "object": "rerank",
        "results": answer.results(_text),
        "model": answer.model,
        "usage": usage(answer.tokens),
        "id": answer.id,
    }


def _write_infinity_error(error: SIEError) -> Json:
    error_type = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": error_type, "param": None, "code": error.status}}


JINA = Dialect("Jina", _read, _write, _write_error, EXAMPLE)
INFINITY = Dialect("infinity", _read_infinity, _write_infinity, _write_infinity_error, EXAMPLE)
