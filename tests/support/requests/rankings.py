"""One query and its candidates for all frameworks, and the ranking that the client returns for them."""

from __future__ import annotations

from typing import Any

from sie_sdk import Item, SIEClient

MINI, BERT, INSTRUCTED, ENCODER = "sie/mini-en", "toy/bert", "toy/instructed", "toy/encoder"
QUERY = "What is machine learning?"
TEXTS = [
    "It will rain tomorrow.",
    "Machine learning learns from data.",
    "Deep neural networks power modern systems.",
    "Machine learning learns from data.",  # a duplicate: candidates are identified by position
    "",
]


def ranking(
    client: SIEClient, model: str, query: str, texts: list[str], **params: Any
) -> list[tuple[int, float]]:
    """Return positions and scores, the best first."""
    items = [Item(id=str(index), text=text) for index, text in enumerate(texts)]
    entries = client.score(model, Item(text=query), items, **params)["scores"]
    return [(int(entry["item_id"] or ""), entry["score"]) for entry in entries]
