"""NVIDIA NIM's ranking. Facts: docs.nvidia.com/nim/nemo-retriever/text-reranking.

Its scores are logits, as the field says; it refuses what it does not know and, unless told `truncate: END`, texts that
are too long. `top_k`, which LiteLLM sends, is taken too.
"""

from __future__ import annotations

from typing import Literal

from sie_server.api.dialects.dialect import Answer, Asked, Dialect, Json
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import asked, documents_of, usage
from sie_server.errors import SIEError


def _read(fields: Fields) -> Asked:
    documents = documents_of(fields)
    truncate = fields.take(Literal["NONE", "END"], "truncate")
    return asked(fields, documents, truncate=truncate == "END", raw=True)


def _write(answer: Answer) -> Json:
    rankings = [{"index": hit.index, "logit": hit.score} for hit in answer.hits]
    return {"rankings": rankings, "usage": usage(answer.tokens)}


def _complain(error: SIEError) -> Json:
    return {"error": error.message}


EXAMPLE = {
    "query": {"text": "what do stars burn?"},
    "passages": [{"text": "Stars burn hydrogen."}, {"text": "Rain falls."}],
    "truncate": "END",
}
NIM = Dialect("NVIDIA NIM", _read, _write, _complain, EXAMPLE, strict=True)
