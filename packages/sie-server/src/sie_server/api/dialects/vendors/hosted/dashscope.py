"""Alibaba's DashScope (Model Studio) rerank APIs. Source: the client library `dashscope` 2.

The native API groups its fields as `input` and `parameters`; the compatible one, `/reranks`, has them in the body.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, as_text_object, documents_of, read_request
from sie_server.errors import SIEError


def _read_native(fields: Fields) -> RerankRequest:
    fields.unfold("input")
    fields.unfold("parameters")
    return _read(fields)


def _read(fields: Fields) -> RerankRequest:
    return read_request(fields, documents_of(fields))


def _write_native(answer: Answer) -> Json:
    return {
        "output": {"results": answer.results(as_text_object)},
        "usage": {"total_tokens": answer.tokens},
        "request_id": answer.id,
    }


def _write(answer: Answer) -> Json:
    return {
        "object": "list",
        "results": answer.results(as_text_object),
        "model": answer.model,
        "id": answer.id,
        "usage": {"total_tokens": answer.tokens},
    }


def _write_native_error(error: SIEError) -> Json:
    return {"code": error.code, "message": error.message}


def _write_error(error: SIEError) -> Json:
    return {"error": {"code": error.code, "message": error.message, "type": error.code.lower()}}


NATIVE_EXAMPLE = {"input": EXAMPLE, "parameters": {"return_documents": True}}
DASHSCOPE = Dialect("DashScope", _read_native, _write_native, _write_native_error, NATIVE_EXAMPLE)
DASHSCOPE_COMPATIBLE = Dialect("DashScope, compatible", _read, _write, _write_error, EXAMPLE)
