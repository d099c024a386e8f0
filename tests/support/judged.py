"""Small judged collections as files, and a scorer that needs no model."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sie_server.offline.errors import OfflineError
from sie_server.offline.scorers import Answer, Encoded

WORDS = (
    *("river", "stone", "apple", "cloud", "engine", "paper", "winter", "garden"),
    *("music", "silver", "harbor", "candle", "forest", "bridge", "window"),
)


def write_beir(folder: Path, queries: int = 8, documents: int = 30, seed: int = 0) -> Path:
    """Write a collection of random words in the BEIR layout; each query has two relevant documents."""
    random_words = random.Random(seed)
    folder.mkdir(parents=True)
    corpus = [
        {
            "_id": f"d{i}",
            "title": WORDS[i % len(WORDS)],
            "text": " ".join(random_words.choices(WORDS, k=3 + i % 6)),
        }
        for i in range(documents)
    ]
    asked = [{"_id": f"q{i}", "text": " ".join(random_words.choices(WORDS, k=3))} for i in range(queries)]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in corpus)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = [
        f"q{i}\td{document}\t{grade}\n"
        for i in range(queries)
        for grade, document in enumerate(random_words.sample(range(documents), 3))
    ]
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return folder


class WordScorer:
    """Scores texts by a digest of query and text. It fails at the calls that `fail_at` names, counted from 1."""

    def __init__(self, fail_at: int | None = None, version: str = "1", cut: int | None = None) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()  # (query, options)
        self._fail_at, self._version, self._cut = fail_at, version, cut

    async def identity(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"version": self._version}

    async def vector_identity(self, model: str) -> dict[str, Any]:
        return {"version": self._version}

    async def score(self, model: str, query: str, texts: Sequence[str], options: Mapping[str, Any]) -> Answer:
        if self._fail_at is not None and sum(self.calls.values()) + 1 == self._fail_at:
            raise OfflineError("the endpoint went away")
        self.calls[query, json.dumps(dict(options))] += 1
        noise = random.Random(f"{model} {query} {dict(options)}")
        scores = [noise.random() for _ in texts]
        order = sorted(range(len(texts)), key=lambda place: -scores[place])
        whole = "long_document" in options or self._cut is None
        truncated = [] if whole else [i for i, text in enumerate(texts) if len(text) > self._cut]  # type: ignore[operator]
        return Answer(order, scores, truncated, False, "logit", 100.0 + len(self.calls), 0.25)

    async def encode(self, model: str, texts: Sequence[str], *, is_query: bool) -> Encoded:
        """Count the words of the list in each text."""
        self.calls["encode", str(is_query)] += len(texts)
        counts = np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32)
        unit = counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
        return Encoded(unit, [self._cut is not None and len(text) > self._cut for text in texts])

    async def close(self) -> None:
        pass
