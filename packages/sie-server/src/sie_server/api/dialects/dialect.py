"""The parts of a dialect: pure functions that read a body, write a response and write an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sie_server.api.dialects.fields import Fields
from sie_server.catalog import Calibration
from sie_server.errors import InvalidInput, SIEError, shown
from sie_server.serving.activation import activate
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Item, ScoreRequest, ScoreResponse

Json = dict[str, Any]
WARNINGS = "X-SIE-Warnings"
HEADER_BYTES = 3000


@dataclass(frozen=True)
class Document:
    """A document: the scored text, and the value that the caller sent."""

    text: str
    sent: str | Json


@dataclass(frozen=True)
class RerankRequest:
    """A request in any dialect, in one vocabulary. None means the server's default."""

    model: str | None
    queries: list[str]  # one for all documents, or one per document
    documents: list[Document]
    instruction: str | None = None
    top_n: int | None = None
    return_documents: bool = False
    max_document_tokens: int | None = None
    max_seq_length: int | None = None
    truncate: bool = True  # False: a text that would be truncated is an error
    raw: bool = False  # the model's raw value instead of a probability
    warnings: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # path in a ScoreRequest → path in the caller's body

    @property
    def pairs(self) -> bool:
        """Whether every document has a query of its own."""
        return len(self.queries) > 1

    def score_requests(self) -> list[ScoreRequest]:
        """Convert to one score request per different query, for raw values; ids are the indices of the documents.

        `answer_of` applies the sigmoid or the calibration for all dialects.
        """
        options = {
            "normalize": "none",
            "top_n": self.top_n,
            "max_document_tokens": self.max_document_tokens,
            "max_seq_length": self.max_seq_length,
            "long_document": None if self.truncate else "refuse",
        }
        queries = self.queries * len(self.documents) if len(self.queries) == 1 else self.queries
        items: dict[str, list[Item]] = {}
        for i, (query, document) in enumerate(zip(queries, self.documents, strict=True)):
            items.setdefault(query, []).append(Item(id=str(i), text=document.text))
        return [
            ScoreRequest(Item(text=query), its_own, self.instruction, options)
            for query, its_own in items.items()
        ]

    def in_callers_terms(self, message: str) -> str:
        """Replace field paths of a ScoreRequest in a message by those of the caller's body."""
        for ours, theirs in self.names.items():
            message = message.replace(ours, theirs)
        return message


@dataclass(frozen=True)
class Hit:
    """The score of one document; `document` is None unless requested."""

    index: int
    score: float
    document: Document | None


@dataclass(frozen=True)
class Answer:
    """The result from which every dialect writes its response; the best hit first."""

    id: str
    model: str
    hits: list[Hit]
    tokens: int
    request: RerankRequest
    timing: RequestTiming
    warnings: list[str]

    @property
    def in_order(self) -> list[Hit]:
        """The hits in the order of the documents."""
        return sorted(self.hits, key=lambda hit: hit.index)

    def results(self, write_document: Callable[[Document], Any], key: str = "document") -> list[Json]:
        """Return `{index, relevance_score}` and, if requested, the document under `key`: strict parsers reject null."""
        return [
            {"index": hit.index, "relevance_score": hit.score}
            | ({key: write_document(hit.document)} if hit.document else {})
            for hit in self.hits
        ]


def answer_of(
    request: RerankRequest,
    answer: ScoreResponse,
    request_id: str,
    timing: RequestTiming,
    calibration: Calibration | None = None,
) -> Answer:
    """Apply the sigmoid to logits, and the model's calibration to similarities, unless raw values were requested.

    Similarities of a model without a calibration stay unchanged.
    """
    score_of: Callable[[float], float] = partial(activate, activation="identity")
    if answer.score_type == "logit" and not request.raw:
        score_of = partial(activate, activation="sigmoid")
    elif calibration and not request.raw:
        score_of = calibration.probability
    hits = []
    for entry in answer.scores:
        index = int(entry.item_id)
        document = request.documents[index] if request.return_documents else None
        hits.append(Hit(index, score_of(entry.score), document))
    warnings = [*request.warnings, *(request.in_callers_terms(warning) for warning in answer.warnings or [])]
    pruned = sum(len(stage.pruned) for stage in answer.stages or [])
    if pruned:
        warnings.append(
            f"{pruned} of {len(request.documents)} documents were pruned by the cascade and are not in the response"
        )
    return Answer(request_id, answer.model, hits, answer.usage.input_tokens, request, timing, warnings)


@dataclass(frozen=True)
class Dialect:
    """One vendor's API.

    `claims` returns True if a body's fields occur only in this dialect. A `strict` dialect rejects unknown fields; the
    others report them in the header X-SIE-Warnings. The clients of a `complete` dialect match scores to documents by
    their position.
    """

    name: str
    read: Callable[[Fields], RerankRequest]
    write: Callable[[Answer], Any]
    write_error: Callable[[SIEError], Json]
    example: Json  # a request body, for the OpenAPI document
    claims: Callable[[Mapping[str, Any]], bool] = lambda body: True
    strict: bool = False
    complete: bool = False

    def check_complete(self, answer: ScoreResponse) -> None:
        """Raise InvalidInput if documents have no score and the dialect's clients would not notice."""
        pruned = sum(len(stage.pruned) for stage in answer.stages or [])
        if self.complete and pruned:
            raise InvalidInput(
                f"model {shown(answer.model)} is a cascade, which has no scores of the {pruned} documents that it "
                "pruned, and this API needs a score for each one; send fewer documents, name one of the stages, or use "
                "/v2/rerank or /v1/score/{model} - at `$.model`"
            )


def marked_by(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """Return a `claims` function that accepts bodies with any of these fields."""
    return lambda body: any(name in body for name in fields)


def warning_header(warnings: Sequence[str]) -> dict[str, str]:
    """Return the header X-SIE-Warnings, a JSON list in ASCII because a warning may quote the request.

    Warnings beyond `HEADER_BYTES` are counted instead, because clients and proxies limit the size of headers.
    """
    kept, size = list[str](), 0
    for warning in warnings:
        size += len(json.dumps(warning))
        if size > HEADER_BYTES:
            kept.append(f"{len(warnings) - len(kept)} more warnings")
            break
        kept.append(warning)
    return {WARNINGS: json.dumps(kept)} if kept else {}
