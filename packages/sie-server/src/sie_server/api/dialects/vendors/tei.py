"""/rerank and /predict of text-embeddings-inference (TEI). Source: its docs/openapi.json.

TEI serves one model, which its bodies do not name. Here that is the first `--model` that scores; a body may contain
`model`.

/predict classifies texts and pairs of texts in TEI. Here it scores pairs `[query, text]`; `inputs` is one pair or a
list of pairs. A pair may also have the form of transformers' pipelines, `{"text", "text_pair"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sie_server.api.dialects.dialect import Answer, Dialect, Document, Json, RerankRequest, marked_by
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.reading import MOST_QUERIES, check_number, documents_of, read_request
from sie_server.errors import InvalidInput, SIEError


def _read(fields: Fields) -> RerankRequest:
    documents = documents_of(fields)
    raw = bool(fields.take(bool, "raw_scores"))
    return read_request(fields, documents, truncate=_truncate(fields), raw=raw)


def _truncate(fields: Fields) -> bool:
    """Read `truncate`. By default long texts are truncated, as with TEI's auto_truncate, and reported."""
    truncate = fields.take(bool, "truncate") is not False
    direction = fields.take(str, "truncation_direction") or "right"
    if direction.lower() != "right" and truncate:
        raise InvalidInput("texts are truncated only at the end; send 'Right' - at `$.truncation_direction`")
    return truncate


def _write(answer: Answer) -> list[Json]:
    return [
        {"index": hit.index, "score": hit.score} | ({"text": hit.document.text} if hit.document else {})
        for hit in answer.hits
    ]


def _write_error(error: SIEError) -> Json:
    return {"error": error.message, "error_type": _error_type(error.status)}


def _read_predict(fields: Fields) -> RerankRequest:
    sent: Any = fields.need(object, "inputs")
    given = [sent] if _is_pair(sent) else sent
    if not isinstance(given, list) or not given:
        raise InvalidInput(f"{PAIRS} - at `$.inputs`")
    check_number(given, "inputs")
    pairs = [_pair(one, i) for i, one in enumerate(given)]
    queries = [query for query, _ in pairs]
    if len(set(queries)) > MOST_QUERIES:
        raise InvalidInput(f"at most {MOST_QUERIES:,} different queries are accepted - at `$.inputs`")
    fields.spelled["query"] = fields.spelled["documents"] = "inputs"
    documents = [Document(text, text) for _, text in pairs]
    raw = bool(fields.take(bool, "raw_scores"))
    return read_request(fields, documents, queries=queries, truncate=_truncate(fields), raw=raw)


def _is_pair(sent: Any) -> bool:
    """Return whether `inputs` is one pair. As in TEI, a list of texts is a pair, not a batch of texts."""
    return isinstance(sent, dict) or (isinstance(sent, list) and isinstance(next(iter(sent), None), str))


def _pair(sent: Any, index: int) -> tuple[str, str]:
    pair = [sent.get("text"), sent.get("text_pair")] if isinstance(sent, dict) else sent
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise InvalidInput(f"{PAIRS} - at `$.inputs[{index}]`")
    return pair[0], pair[1]


def _claims_pair(body: Mapping[str, Any]) -> bool:
    """Return whether `inputs` begins as one pair does: with an object, or with a list whose first value is a text."""
    start = bytes(memoryview(body.get("inputs", b""))[:RAW_START]).lstrip()
    return start[:1] == b"{" or (start[:1] == b"[" and start[1:].lstrip()[:1] == b'"')


def _write_batch(answer: Answer) -> list[list[Json]]:
    return [[{"score": hit.score, "label": LABEL}] for hit in answer.in_order]


def _write_pair(answer: Answer) -> list[Json]:
    return _write_batch(answer)[0]


def _error_type(status: int) -> str:
    if status in (429, 503):
        return "Overloaded"
    return "Validation" if status < 500 else "Backend"


RAW_START = 100  # bytes of a body that determine its form
LABEL = "LABEL_0"  # the only class of a model that scores relevance, under transformers' name
PAIRS = "expected a pair [query, text] or a list of pairs, because rerankers score pairs"
EXAMPLE = {"query": "what do stars burn?", "texts": ["Stars burn hydrogen.", "Rain falls."]}
TEI = Dialect("TEI", _read, _write, _write_error, EXAMPLE, claims=marked_by("texts"))
PAIR_EXAMPLE = {"inputs": ["what do stars burn?", "Stars burn hydrogen."]}
PAIRS_EXAMPLE = {"inputs": [["what do stars burn?", "Stars burn hydrogen."], ["rain?", "Rain falls."]]}
PREDICT_PAIR = Dialect(
    "TEI", _read_predict, _write_pair, _write_error, PAIR_EXAMPLE, claims=_claims_pair, complete=True
)
PREDICT = Dialect("TEI", _read_predict, _write_batch, _write_error, PAIRS_EXAMPLE, complete=True)
