"""The evaluation sets of the embedded model, their first stage and their metric, shared by all quality measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sie_server.eval import Collection
from sie_server.eval import load as load_collection
from sie_server.eval.first_stage import bm25
from sie_server.eval.metrics import mean, per_query

CANDIDATES = 100
METRIC = "ndcg@10"
# the least mean nDCG@10 over all queries that the embedded model must reach on BM25's first hundred documents
TARGETS = {
    "scifact": 0.717,
    "cosqa": 0.534,
    "cacm": 0.506,
    "fairytaleqa-test": 0.719,
}
REPORTED = ("scifact", "cosqa", "cacm", "fairytaleqa-test")
# Sets for choosing between variants are kept apart from the reported ones.
SELECTION = {"cosqa-dev": ("cosqa", "dev"), "fairytaleqa-val": ("fairytaleqa-val", None)}


def load(data: Path, name: str) -> Collection:
    """Load a collection from `data`/eval. Raises DataError."""
    folder, qrels = SELECTION.get(name, (name, None))
    return load_collection(data / "eval" / folder, qrels, name)


def bm25_candidates(collection: Collection, count: int = CANDIDATES) -> dict[str, list[str]]:
    """Return the first stage: the best `count` documents of each query by BM25, best first."""
    return {query: list(row) for query, row in bm25(collection, count).ranked.items()}


def mean_ndcg(rankings: Mapping[str, Sequence[str]], collection: Collection) -> float:
    """Return the mean nDCG@10 with linear gain."""
    return mean(per_query([METRIC], collection.grades, rankings)[METRIC])
