"""vLLM's rerank and score APIs. Sources: vllm/entrypoints/pooling/scoring/protocol.py and docs.vllm.ai.

`/score` returns scores in the order of the documents. Texts that are too long are truncated and reported; vLLM rejects
them.
"""

from __future__ import annotations

import time
from typing import Any

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import (
    EXAMPLE,
    RankFields,
    as_text_object,
    check_number,
    documents_of,
    read_request,
    usage,
)
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


def _read_rerank(fields: Fields) -> RerankRequest:
    documents = documents_of(fields, fields.take(RankFields, "rank_fields"))
    return read_request(fields, documents, zero_is_all=True, **_common(fields))


def _common(fields: Fields) -> Json:
    """Read the fields that both routes have."""
    activation = fields.take(bool, "use_activation", "activation")
    length = fields.take(int, "truncate_prompt_tokens")  # -1: the model's own limit
    fields.has_no_effect("user", "callers are identified by their API key")
    fields.has_no_effect("priority", "requests are scheduled by arrival and size")
    return {"raw": activation is False, "max_seq_length": None if length == -1 else length}


def _write_rerank(answer: Answer) -> Json:
    return {
        "id": f"rerank-{answer.id}",
        "model": answer.model,
        "usage": usage(answer.tokens),
        "results": answer.results(as_text_object),
    }


def _read_score(fields: Fields) -> RerankRequest:
    queries = _texts(fields, SCORE_QUERIES)
    name = fields.spelled["queries"]
    if len(queries) != 1:
        raise InvalidInput(
            f"expected one query per request, got {len(queries)}; send the others separately - at `$.{name}`"
        )
    documents = [Document(text, text) for text in _texts(fields, SCORE_DOCUMENTS)]
    fields.spelled["query"] = name
    return read_request(fields, documents, query=queries[0], **_common(fields))


def _texts(fields: Fields, spellings: tuple[str, ...]) -> list[str]:
    sent: Any = fields.need(object, *spellings)
    texts, name = [sent] if isinstance(sent, str) else sent, fields.spelled[spellings[0]]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"expected a string or a list with at least one string - at `$.{name}`")
    check_number(texts, name)
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


def _write_error(error: SIEError) -> Json:
    kind = TYPES.get(error.status, "InternalServerError" if error.status >= 500 else "BadRequestError")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}


SCORE_EXAMPLE = {"text_1": "what do stars burn?", "text_2": ["Stars burn hydrogen.", "Rain falls."]}
VLLM_RERANK = Dialect("vLLM", _read_rerank, _write_rerank, _write_error, EXAMPLE)
VLLM_SCORE = Dialect("vLLM score", _read_score, _write_score, _write_error, SCORE_EXAMPLE)
