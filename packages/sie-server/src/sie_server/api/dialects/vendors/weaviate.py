"""Weaviate's module reranker-transformers. Sources: its client, modules/reranker-transformers/clients/ranker.go of
weaviate/weaviate, and its server, app.py of weaviate/reranker-transformers.

Weaviate assigns scores by position, so they are in the order of the documents. It sends no model and, in all versions
read so far, an empty `property`. A body of nothing but a query and documents may come from vLLM's clients as well, so
its response has the keys of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, documents_of, read_request
from sie_server.api.dialects.vendors.vllm import VLLM_RERANK
from sie_server.errors import InvalidInput, SIEError


def _read(fields: Fields) -> RerankRequest:
    if fields.take(str, "property"):
        raise InvalidInput("send the texts as `documents`, as Weaviate 1.21 and later do - at `$.property`")
    return read_request(fields, documents_of(fields))


def _write(answer: Answer) -> Json:
    documents = answer.request.documents
    scores = [{"document": documents[hit.index].text, "score": hit.score} for hit in answer.in_order]
    return {"query": answer.request.queries[0], "scores": scores}


def _write_both(answer: Answer) -> Json:
    written: Json = VLLM_RERANK.write(answer)
    return written | _write(answer)


def _write_error(error: SIEError) -> Json:
    return {"error": error.message}


def _is_bare(body: Mapping[str, Any]) -> bool:
    return body.keys() == {"query", "documents"}


WEAVIATE = Dialect(
    "Weaviate", _read, _write, _write_error, EXAMPLE, claims=marked_by("property"), complete=True
)
VLLM_OR_WEAVIATE = Dialect(
    "vLLM or Weaviate",
    VLLM_RERANK.read,
    _write_both,
    VLLM_RERANK.write_error,
    EXAMPLE,
    claims=_is_bare,
    complete=True,
)
