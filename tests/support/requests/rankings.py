"""One query and its candidates for all frameworks, and the ranking that the client itself gets."""

from __future__ import annotations

from typing import Any

from sie_sdk import Item, SIEClient

MINI, BERT, INSTRUCTED, ENCODER = "sie/mini-en", "toy/bert", "toy/instructed", "toy/encoder"
QUERY = "What is machine learning?"
TEXTS = [
    "It will rain tomorrow.",
    "Machine learning learns from data.",
    "Deep neural networks power modern systems.",
    "Machine learning learns from data.",  # the same again: candidates are known by their position
    "",
]


def ranking(
    client: SIEClient, model: str, query: str, texts: list[str], **params: Any
) -> list[tuple[int, float]]:
    """Positions and scores, the best first."""
    items = [Item(id=str(index), text=text) for index, text in enumerate(texts)]
    entries = client.score(model, Item(text=query), items, **params)["scores"]
    return [(int(entry["item_id"] or ""), entry["score"]) for entry in entries]
