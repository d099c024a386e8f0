"""SGLang's rerank API. Source: python/sglang/srt/entrypoints/openai/protocol.py of sgl-project/sglang.

Its path is Jina's, and its bodies have the same fields, so it needs the prefix. Every hit has its document.
"""

from __future__ import annotations

from dataclasses import replace

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, documents_of, read_request
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    returned = fields.sent("return_documents")
    request = read_request(fields, documents_of(fields))
    return request if returned else replace(request, return_documents=True)


def _write(answer: Answer) -> list[Json]:
    return [
        {"score": hit.score, "index": hit.index} | ({"document": hit.document.text} if hit.document else {})
        for hit in answer.hits
    ]


def _write_error(error: SIEError) -> Json:
    return {
        "object": "error",
        "message": error.message,
        "type": error.code,
        "param": None,
        "code": error.status,
    }


SGLANG = Dialect("SGLang", _read, _write, _write_error, EXAMPLE)
