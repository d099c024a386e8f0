"""vLLM's rerank and score APIs. Sources: vllm/entrypoints/pooling/scoring/protocol.py and docs.vllm.ai.

`/score` returns scores in the order of the documents. It takes one query for all documents, or one for each. Texts that
are too long are truncated and reported; vLLM rejects them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import (
    EXAMPLE,
    MOST_QUERIES,
    TOP_N,
    Positive,
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
MULTIMODAL = "this server reads text, not objects or lists of parts; send strings"


def _read_rerank(fields: Fields) -> RerankRequest:
    documents = documents_of(fields, fields.take(RankFields, "rank_fields"))
    most = fields.take(Positive, "max_tokens_per_doc")
    return read_request(fields, documents, zero_is_all=True, max_document_tokens=most, **_common(fields))


def _common(fields: Fields) -> Json:
    """Read the fields that both routes have."""
    activation = fields.take(bool, "use_activation", "activation")
    length = fields.take(int, "truncate_prompt_tokens")  # -1: the model's own limit
    if (fields.take(str, "truncation_side") or "right") != "right":
        raise InvalidInput("texts are truncated only at the end; send 'right' - at `$.truncation_side`")
    fields.refuse("chat_template", "prompts are those of the model's own template; omit this field")
    fields.has_no_effect("user", "callers are identified by their API key")
    fields.has_no_effect("priority", "requests are scheduled by arrival and size")
    fields.has_no_effect("request_id", "send the header X-SIE-Request-ID")
    fields.is_met("cache_salt", "mm_processor_kwargs")  # texts have no media, and results are not cached
    return {"raw": activation is False, "max_seq_length": None if length == -1 else length}


def _write_rerank(answer: Answer) -> Json:
    return {
        "id": f"rerank-{answer.id}",
        "model": answer.model,
        "usage": usage(answer.tokens),
        "results": answer.results(as_text_object),
    }


def _read_score(fields: Fields) -> RerankRequest:
    queries, texts = _texts(fields, SCORE_QUERIES), _texts(fields, SCORE_DOCUMENTS)
    name, fields.spelled["query"] = fields.spelled["queries"], fields.spelled["queries"]
    if len(queries) not in (1, len(texts)):
        raise InvalidInput(
            f"{len(queries)} queries for {len(texts)} documents; send one query, or one for each document "
            f"- at `$.{name}`"
        )
    if len(set(queries)) > MOST_QUERIES:
        raise InvalidInput(f"at most {MOST_QUERIES:,} different queries are accepted - at `$.{name}`")
    fields.refuse("label_token_ids", "the scores of chosen tokens are not computed; omit this field")
    if len(queries) > 1:
        for field in TOP_N:
            fields.refuse(field, "several queries have no common order; omit this field")
    documents = [Document(text, text) for text in texts]
    return read_request(fields, documents, queries=queries, **_common(fields))


def _texts(fields: Fields, spellings: tuple[str, ...]) -> list[str]:
    sent: Any = fields.need(object, *spellings)
    texts, name = [sent] if isinstance(sent, str) else sent, fields.spelled[spellings[0]]
    other = next(
        (one for one in (texts if isinstance(texts, list) else [texts]) if not isinstance(one, str)), None
    )
    if isinstance(other, dict | list):
        raise InvalidInput(f"{MULTIMODAL} - at `$.{name}`")
    if not isinstance(texts, list) or not texts or other is not None or None in texts:
        raise InvalidInput(f"expected a string or a list with at least one string - at `$.{name}`")
    check_number(texts, name)
    return texts


def _write_score(answer: Answer) -> Json:
    return {
        "id": f"score-{answer.id}",
        "object": "list",
        "created": int(time.time()),
        "model": answer.model,
        "data": [{"index": hit.index, "object": "score", "score": hit.score} for hit in answer.in_order],
        "usage": usage(answer.tokens),
    }


def _write_error(error: SIEError) -> Json:
    kind = TYPES.get(error.status, "InternalServerError" if error.status >= 500 else "BadRequestError")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.status}}


SCORE_EXAMPLE = {"text_1": "what do stars burn?", "text_2": ["Stars burn hydrogen.", "Rain falls."]}
OWN = (
    "truncate_prompt_tokens",
    "truncation_side",
    "use_activation",
    "activation",
    "chat_template",
    "cache_salt",
)
VLLM_RERANK = Dialect("vLLM", _read_rerank, _write_rerank, _write_error, EXAMPLE)
VLLM_MARKED = replace(VLLM_RERANK, claims=marked_by(*OWN))  # on a path of several dialects
VLLM_SCORE = Dialect("vLLM score", _read_score, _write_score, _write_error, SCORE_EXAMPLE, complete=True)
