"""Pinecone's rerank API. Source: the client library `pinecone` 10.

Its path is vLLM's, so it needs the prefix. Documents are objects and are returned unless `return_documents` is false.
"""

from __future__ import annotations

from dataclasses import replace

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, RankFields, documents_of, read_request
from sie_server.api.dialects.vendors.hosted.cohere import as_sent
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields, fields.take(RankFields, "rank_fields"))
    parameters = fields.inside("parameters")
    truncate = parameters.take(str, "truncate") != "NONE"
    parameters.finish(strict=False)
    fields.warnings += parameters.warnings
    returned = fields.sent("return_documents")
    request = read_request(fields, documents, truncate=truncate, truncate_name="parameters.truncate")
    return request if returned else replace(request, return_documents=True)


def _write(answer: Answer) -> Json:
    data = [
        {"index": hit.index, "score": hit.score}
        | ({"document": as_sent(hit.document)} if hit.document else {})
        for hit in answer.hits
    ]
    return {"model": answer.model, "data": data, "usage": {"rerank_units": 1}}


def _write_error(error: SIEError) -> Json:
    return {"error": {"code": error.code, "message": error.message}, "status": error.status}


PINECONE = Dialect("Pinecone", _read, _write, _write_error, EXAMPLE)
