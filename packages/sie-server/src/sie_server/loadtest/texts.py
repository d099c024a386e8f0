"""Texts to rerank: words of the embedded model's vocabulary with the lengths of passages.

No two requests are equal, so that no cache of the endpoint answers them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import accumulate

MEDIAN_WORDS = 60.0
SPREAD = 0.5  # σ of the logarithm of the lengths
LONGEST = 2.7  # times the median
QUERY_WORDS = 8
POOL = 256  # documents that are made before the first request


@cache
def words() -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return English words, the most frequent first, and their cumulative weights."""
    content = (
        files("sie_server").joinpath("embedded", "mini-en", "tokenizer.json").read_text(encoding="utf-8")
    )
    vocabulary = json.loads(content)["model"]["vocab"]
    found = tuple(word for word in vocabulary if len(word) > 2 and word.isascii() and word.isalpha())
    return found, tuple(accumulate(1 / (rank + 10) for rank in range(len(found))))


@cache
def pool(seed: int, fixed_words: int | None) -> tuple[str, ...]:
    """Return documents of `fixed_words` words each, or of lognormal lengths."""
    rng = random.Random(seed)
    lengths = (round(MEDIAN_WORDS * min(rng.lognormvariate(0, SPREAD), LONGEST)) for _ in range(POOL))
    return tuple(_text(rng, (fixed_words or length) - 1) for length in lengths)


def _text(rng: random.Random, length: int) -> str:
    known, weights = words()
    return " ".join(rng.choices(known, cum_weights=weights, k=length))


class Texts:
    """An endless series of queries with their documents; the seeds decide all of them."""

    def __init__(self, documents: int, seed: int, client: int, fixed_words: int | None = None) -> None:
        """`fixed_words`: words of every document; None: lognormal with a median of 60."""
        self._documents = documents
        self._pool = pool(seed, fixed_words)
        self._rng = random.Random(f"{seed} {client}")

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Yield a query and documents. A document of the pool gets a new first word, which costs little time."""
        known, _ = words()
        while True:
            chosen = self._rng.choices(self._pool, k=self._documents)
            first = self._rng.choices(known, k=self._documents)
            yield (
                _text(self._rng, QUERY_WORDS),
                [f"{word} {text}".strip() for word, text in zip(first, chosen, strict=True)],
            )
