"""Helpers of most comparisons: run a job in an engine, and tokenise pairs with the reference library."""

from __future__ import annotations

from typing import Any

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job


def run_job(engine: Engine, job: Job) -> list[Any]:
    """Return the results of a job whose query is not a separate sequence, in one pass."""
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return job.results


def read_pairs(tokenizer: Any, query: str, documents: list[str], limit: int) -> Any:
    """Tokenise pairs with transformers, padded, truncated as sentence-transformers does."""
    return tokenizer(
        [query] * len(documents),
        documents,
        truncation="longest_first",
        max_length=limit,
        padding=True,
        return_tensors="pt",
    )
