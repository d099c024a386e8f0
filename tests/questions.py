"""The question every client asks, and what our own client says to it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import checkpoints
from servers import Server
from sie_sdk import SIEClient

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
LONG = "rain falls tomorrow over the quiet harbour " * 60  # more than the toy models read


@dataclass(frozen=True)
class Expected:
    """What the Python client says of the same question."""

    order: list[int]
    scores: dict[int, float]

    def check(self, hits: list[tuple[int, float]]) -> None:
        assert [index for index, _ in hits] == self.order[: len(hits)]
        for index, score in hits:
            assert abs(score - self.scores[index]) <= 1e-6


def expect(
    server: Server, model: str, query: str = QUERY, texts: list[str] = TEXTS, **options: object
) -> Expected:
    with SIEClient(server.base_url) as client:
        answer = client.score(model, {"text": query}, [{"text": text} for text in texts], options=options)
    places = [int(entry["item_id"].removeprefix("item-")) for entry in answer["scores"]]
    return Expected(places, {i: e["score"] for i, e in zip(places, answer["scores"], strict=True)})


def probabilities(model: str) -> dict[str, str]:
    """Options under which the model's scores are what dialects promise: probabilities where there are logits."""
    return {} if model == SIMILARITY else {"normalize": "sigmoid"}


def random_questions(count: int) -> list[tuple[str, list[str]]]:
    rng = random.Random(11)
    return [
        (
            checkpoints.random_text(rng, 6),
            [checkpoints.random_text(rng, rng.randint(1, 40)) for _ in range(9)],
        )
        for _ in range(count)
    ]
