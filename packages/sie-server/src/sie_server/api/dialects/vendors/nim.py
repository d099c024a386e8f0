"""NVIDIA NIM's ranking API. Source: docs.nvidia.com/nim/nemo-retriever/text-reranking.

Scores are logits, as the name of the field says. Unknown fields are rejected, and so are texts that are too long unless
`truncate` is END. `top_k`, which LiteLLM sends, is also accepted.
"""

from __future__ import annotations

from typing import Literal

from sie_server.api.dialects.dialect import Answer, Dialect, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import documents_of, read_request, usage
from sie_server.errors import SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    truncate = fields.take(Literal["NONE", "END"], "truncate")
    return read_request(fields, documents, truncate=truncate == "END", raw=True)


def _write(answer: Answer) -> Json:
    rankings = [{"index": hit.index, "logit": hit.score} for hit in answer.hits]
    return {"rankings": rankings, "usage": usage(answer.tokens)}


def _write_error(error: SIEError) -> Json:
    return {"error": error.message}


EXAMPLE = {
    "query": {"text": "what do stars burn?"},
    "passages": [{"text": "Stars burn hydrogen."}, {"text": "Rain falls."}],
    "truncate": "END",
}
NIM = Dialect("NVIDIA NIM", _read, _write, _write_error, EXAMPLE, strict=True)
