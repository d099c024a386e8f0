"""What nearly every comparison does: put a job through an engine, and read pairs as the reference library does."""

from __future__ import annotations

from typing import Any

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job


def run_job(engine: Engine, job: Job) -> list[Any]:
    """The results of a job without a query of its own, in one pass."""
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return job.results


def read_pairs(tokenizer: Any, query: str, documents: list[str], limit: int) -> Any:
    """The encoding by transformers, padded, with only the documents cut."""
    return tokenizer(
        [query] * len(documents),
        documents,
        truncation="only_second",
        max_length=limit,
        padding=True,
        return_tensors="pt",
    )
