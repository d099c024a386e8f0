"""What a dialect is: a reader of bodies, a writer of answers, an envelope for errors. All of them pure functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sie_server.api.dialects.fields import Fields
from sie_server.errors import SIEError
from sie_server.serving.requests.ranking import activate
from sie_server.wire import Item, ScoreRequest, ScoreResponse

Json = dict[str, Any]
WARNINGS = "X-SIE-Warnings"


@dataclass(frozen=True)
class Document:
    """A candidate: the text that is scored, and what the caller sent."""

    text: str
    sent: str | Json


@dataclass(frozen=True)
class Asked:
    """A request in any dialect, in one vocabulary. None is what the server does when it is not told."""

    model: str | None
    query: str
    documents: list[Document]
    top_n: int | None = None
    return_documents: bool = False
    max_document_tokens: int | None = None
    max_seq_length: int | None = None
    truncate: bool = True  # False: a text that would be cut is an error
    raw: bool = False  # the model's own value instead of a probability
    warnings: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # a path in our words → in the caller's

    def request(self) -> ScoreRequest:
        """The same in SIE's own words; raw values, so that one sigmoid, here, makes all probabilities."""
        options = {
            "normalize": "none",
            "top_n": self.top_n,
            "max_document_tokens": self.max_document_tokens,
            "max_seq_length": self.max_seq_length,
            "long_document": None if self.truncate else "refuse",
        }
        items = [Item(id=str(i), text=document.text) for i, document in enumerate(self.documents)]
        return ScoreRequest(Item(text=self.query), items, options=options)

    def in_their_words(self, message: str) -> str:
        """A message about this request, with the caller's own field names."""
        for ours, theirs in self.names.items():
            message = message.replace(ours, theirs)
        return message


@dataclass(frozen=True)
class Hit:
    """One document's score; `document` only where it was asked for."""

    index: int
    score: float
    document: Document | None


@dataclass(frozen=True)
class Answer:
    """What every dialect's answer is written from; the best hit first."""

    id: str
    model: str
    hits: list[Hit]
    tokens: int
    candidates: int
    warnings: list[str]

    def results(self, write_document: Callable[[Document], Any], key: str = "document") -> list[Json]:
        """`{index, relevance_score}` and the document under `key`, never a null: strict readers stumble over it."""
        return [
            {"index": hit.index, "relevance_score": hit.score}
            | ({key: write_document(hit.document)} if hit.document else {})
            for hit in self.hits
        ]


def answer_of(asked: Asked, answer: ScoreResponse, request_id: str) -> Answer:
    """Logits become probabilities unless raw ones were asked for; similarities stay as they are."""
    activation = "sigmoid" if answer.score_type == "logit" and not asked.raw else "identity"
    hits = []
    for entry in answer.scores:
        index = int(entry.item_id)
        document = asked.documents[index] if asked.return_documents else None
        hits.append(Hit(index, activate(entry.score, activation), document))
    warnings = [*asked.warnings, *(asked.in_their_words(warning) for warning in answer.warnings or [])]
    return Answer(request_id, answer.model, hits, answer.usage.input_tokens, len(asked.documents), warnings)


@dataclass(frozen=True)
class Dialect:
    """How one vendor's clients speak.

    `claims` tells from a body's fields that it can only be this dialect's. A `strict` one refuses unknown fields, the
    others name them in the header X-SIE-Warnings.
    """

    name: str
    read: Callable[[Fields], Asked]
    write: Callable[[Answer], Any]
    complain: Callable[[SIEError], Json]
    example: Json  # a body, for the OpenAPI document
    claims: Callable[[Mapping[str, Any]], bool] = lambda body: True
    strict: bool = False


def marked_by(*fields: str) -> Callable[[Mapping[str, Any]], bool]:
    """Claims a body that has any of these fields."""
    return lambda body: any(name in body for name in fields)


def warning_header(warnings: Sequence[str]) -> dict[str, str]:
    """The header, a JSON list in ASCII: a warning may quote what a caller sent."""
    return {WARNINGS: json.dumps(list(warnings))} if warnings else {}
