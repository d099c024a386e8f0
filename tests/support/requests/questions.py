"""Requests for every client and dialect, and the Python client's results for them."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

from sie_sdk import SIEClient
from support.checkpoints import cross_encoders
from support.servers.processes import Server

Hits = list[tuple[int, float]]  # positions and scores, the best first
PROBABILITY, LOGIT, SIMILARITY = "toy/bert", "toy/logit", "sie/mini-en"
MODELS = (PROBABILITY, LOGIT, SIMILARITY)
KEY = "integrations-5b1f70c2"
QUERY = "rain falls tomorrow over the harbour"
TEXTS = [
    "machine learning learns patterns from data",
    "rain falls over the quiet harbour",
    "stars burn hydrogen into helium",
    "",
    "lawyers argue about contracts",
]
LONG = "rain falls tomorrow over the quiet harbour " * 60  # longer than the toy models' limit


@dataclass(frozen=True)
class Expected:
    """The Python client's order and scores for the same request."""

    order: list[int]
    scores: dict[int, float]

    def check(self, hits: Hits) -> None:
        assert [index for index, _ in hits] == self.order[: len(hits)], (hits, self.order)
        for index, score in hits:
            assert abs(score - self.scores[index]) <= 1e-6, (index, score, self.scores[index])


@functools.cache
def _client(base_url: str) -> SIEClient:
    """Return one client per server; opening a connection for each of hundreds of requests takes seconds."""
    return SIEClient(base_url)


def expect(
    server: Server, model: str, query: str = QUERY, texts: list[str] = TEXTS, **options: object
) -> Expected:
    items = [{"text": text} for text in texts]
    answer = _client(server.base_url).score(model, {"text": query}, items, options=options)
    places = [int(entry["item_id"].removeprefix("item-")) for entry in answer["scores"]]
    return Expected(places, {i: e["score"] for i, e in zip(places, answer["scores"], strict=True)})


def probabilities(model: str) -> dict[str, str]:
    """Return options for the scores that dialects promise: probabilities."""
    return {"normalize": "calibrated" if model == SIMILARITY else "sigmoid"}


@dataclass(frozen=True)
class Request:
    """A request that every dialect can express; `ids` and `top_n` are optional."""

    model: str
    query: str
    texts: list[str]
    ids: list[str] | None
    top_n: int | None

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the native route, without `top_n`."""
        items: list[dict[str, str]] = [{"text": text} for text in self.texts]
        if self.ids:
            items = [{"id": i, **item} for i, item in zip(self.ids, items, strict=True)]
        return {"query": {"id": "q", "text": self.query}, "items": items}

    def hits(self, scores: list[Any], item_id: str = "item_id") -> Hits:
        """Return positions and scores of a native answer's entries, found by the ids of the documents."""
        names = self.ids or [f"item-{i}" for i in range(len(self.texts))]
        assert [entry["rank"] for entry in scores] == list(range(len(scores)))
        return [(names.index(entry[item_id]), entry["score"]) for entry in scores]


UNUSUAL = [
    "",
    " ",
    "雨が明日港に降る",
    "🌧️ дождь завтра",
    "مطر غدا",
    "e\u0301 café",
    "a\x00b",
    '"\\\n\t</s>[SEP]',
]


def random_requests(count: int) -> list[Request]:
    """Return requests with 1 to 20 documents, some of them empty, unusual, long or duplicated."""
    rng = random.Random(11)

    def text(words: int) -> str:
        return rng.choice(UNUSUAL) if rng.random() < 0.2 else cross_encoders.random_text(rng, words)

    def request(number: int) -> Request:
        texts = [text(rng.randint(1, 15)) for _ in range(rng.randint(1, 20))]
        texts[-1] = rng.choice([*texts, LONG])
        ids = [f"документ {i}" for i in range(len(texts))] if rng.random() < 0.5 else None
        top_n = rng.randint(1, 25) if rng.random() < 0.5 else None
        return Request(MODELS[number % len(MODELS)], text(6), texts, ids, top_n)

    return [request(number) for number in range(count)]
