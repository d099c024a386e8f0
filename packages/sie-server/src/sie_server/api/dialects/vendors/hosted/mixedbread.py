"""Mixedbread's reranking API. Source: the client libraries `mixedbread` 0.54 and `mixedbread-ai` 2.2.

A hit's `object` is the value that `mixedbread-ai` accepts; `mixedbread` accepts any. Without `top_k`, all documents are
returned. On the same path, llama.cpp's server speaks Jina's dialect, with `documents` instead of `input`.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import RankFields, documents_of, read_request, usage
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields, fields.take(RankFields, "rank_fields"))
    fields.refuse_true("rewrite_query", "queries are not rewritten")
    return read_request(fields, documents)


def _write(answer: Answer) -> Json:
    hits = [
        {"index": hit.index, "score": hit.score, "object": "text_document"}
        | ({"input": hit.document.sent} if hit.document else {})
        for hit in answer.hits
    ]
    return {
        "data": hits,
        "model": answer.model,
        "usage": usage(answer.tokens),
        "object": "list",
        "top_k": len(hits),
        "return_input": answer.request.return_documents,
    }


def _write_error(error: SIEError) -> Json:
    return {"message": error.message, "detail": error.message}


EXAMPLE = {"query": "what do stars burn?", "input": ["Stars burn hydrogen.", "Rain falls."]}
MIXEDBREAD = Dialect("Mixedbread", _read, _write, _write_error, EXAMPLE, claims=marked_by("input"))
