"""Raw results → ranked entries. Pure; sigmoid in double precision, so that no two logits tie that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from sie_server.errors import InferenceError
from sie_server.wire import ChunkSpan, Document, Item, ScoreEntry


def activate(logit: float, activation: str) -> float:
    """The score of a logit: itself, or its sigmoid."""
    if activation == "identity":
        return logit
    # both branches are the same function; each is the one that cannot overflow
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


def rank(
    items: Sequence[Item],
    raw: Sequence[float],
    truncated: Sequence[bool],
    *,
    activation: str,
    top_n: int | None,
    logits: bool = False,
    documents: bool = False,
    chunks: Sequence[ChunkSpan] | None = None,
) -> list[ScoreEntry]:
    """Entries in order of relevance, ties in input order.

    `logits` and `documents` put the raw value and the text into each entry; `chunks[i]` is the i-th item's best window.

    Raises:
        InferenceError: a score that is not a finite number; names the item.
    """
    for i, value in enumerate(raw):
        if not math.isfinite(value):
            raise InferenceError(f"the model gave the score {value} for $.items[{i}]; check its weights")
    # sorted by the raw value: a sigmoid rounds large logits together
    order = sorted(range(len(raw)), key=lambda i: -raw[i])[:top_n]
    return [
        ScoreEntry(
            item_id=f"item-{i}" if items[i].id is None else items[i].id,  # type: ignore[arg-type]
            score=activate(raw[i], activation),
            rank=place,
            truncated=True if truncated[i] else UNSET,
            logit=raw[i] if logits else UNSET,
            chunk=chunks[i] if chunks else UNSET,
            document=_document(items[i]) if documents else UNSET,
        )
        for place, i in enumerate(order)
    ]


def _document(item: Item) -> Document | UnsetType:
    """An item without text (vectors, for instance) has no document to give back."""
    return UNSET if item.text is None else Document(item.text)
