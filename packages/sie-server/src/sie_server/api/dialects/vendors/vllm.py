"""vLLM's rerank and score. Facts: vllm/entrypoints/pooling/scoring/protocol.py and docs.vllm.ai.

`/score` answers in the order of the documents. Texts that are too long are cut and reported, where vLLM refuses them.
"""

from __future__ import annotations

import time
from typing import Any

from sie_server.api.dialects.dialect import Answer, Asked, Dialect, Document, Json
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import EXAMPLE, as_text_object, asked, documents_of, usage
from sie_server.errors import InvalidInput, SIEError

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
SCORE_DOCUMENTS = ("documents", "text_2", "items", "data_2")
SCORE_QUERIES = ("queries", "text_1", "query", "data_1")


def _read_rerank(fields: Fields) -> Asked:
    documents = documents_of(fields, fields.take(list[str], "rank_fields"))
    return asked(fields, documents, zero_is_all=True, **_common(fields))


def _common(fields: Fields) -> Json:
    """Fields of both routes."""
    activation = fields.take(bool, "use_activation", "activation")
    length = fields.take(int, "truncate_prompt_tokens")  # -1: the model's own limit
    fields.has_no_effect("user", "callers are told apart by their key")
    fields.has_no_effect("priority", "requests here are served in order of arrival and size")
    return {"raw": activation is False, "max_seq_length": None if length == -1 else length}


def _write_rerank(answer: Answer) -> Json:
    return {
        "id": f"rerank-{answer.id}",
        "model": answer.model,
        "usage": usage(answer.tokens),
        "results": answer.results(as_text_object),
    }


def _read_score(fields: Fields) -> Asked:
    queries = _texts(fields, SCORE_QUERIES)
    name = fields.spelled["queries"]
    if len(queries) != 1:
        raise InvalidInput(f"one query per request; send the others by themselves - at `$.{name}`")
    documents = [Document(text, text) for text in _texts(fields, SCORE_DOCUMENTS)]
    fields.spelled["query"] = name
    return asked(fields, documents, query=queries[0], **_common(fields))


def _texts(fields: Fields, spellings: tuple[str, ...]) -> list[str]:
    sent: Any = fields.need(object, *spellings)
    texts = [sent] if isinstance(sent, str) else sent
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        name = fields.spelled[spellings[0]]
        raise InvalidInput(f"expected a text or a list with at least one text - at `$.{name}`")
    return texts


def _write_score(answer: Answer) -> Json:
    in_order = sorted(answer.hits, key=lambda hit: hit.index)
    return {
        "id": f"score-{answer.id}",
        "object": "list",
        "created": int(time.time()),
        "model": answer.model,
        "data": [{"index": hit.index, "object": "score", "score": hit.score} for hit in in_order],
        "usage": usage(answer.tokens),
    }


def _complain(error: SIEError) -> Json:
    kind = TYPES.get(error.status, "InternalServerError" if error.status >= 500 else "BadRequestError")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}


SCORE_EXAMPLE = {"text_1": "what do stars burn?", "text_2": ["Stars burn hydrogen.", "Rain falls."]}
VLLM_RERANK = Dialect("vLLM", _read_rerank, _write_rerank, _complain, EXAMPLE)
VLLM_SCORE = Dialect("vLLM score", _read_score, _write_score, _complain, SCORE_EXAMPLE)
