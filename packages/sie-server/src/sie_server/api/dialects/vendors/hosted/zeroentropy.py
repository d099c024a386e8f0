"""ZeroEntropy's rerank API. Source: the client library `zeroentropy` 0.1."""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, documents_of, read_request
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    fields.has_no_effect("latency", "requests are scheduled by arrival and size")
    return read_request(fields, documents_of(fields))


def _text(document: Document) -> str:
    return document.text


def _write(answer: Answer) -> Json:
    seconds = answer.timing.total_ms / 1e3
    texts = [*answer.request.queries, *(document.text for document in answer.request.documents)]
    return {
        "results": answer.results(_text),
        "actual_latency_mode": "fast",
        "e2e_latency": seconds,
        "inference_latency": answer.timing.inference_ms / 1e3,
        "total_bytes": sum(len(text.encode(errors="replace")) for text in texts),
        "total_tokens": answer.tokens,
    }


def _write_error(error: SIEError) -> Json:
    return {"detail": error.message}


ZEROENTROPY = Dialect("ZeroEntropy", _read, _write, _write_error, EXAMPLE)
