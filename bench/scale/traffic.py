"""Requests that arrive at random times, with documents of natural length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from sie_server.engine.job import Job, Work

DOCUMENTS, BULK_DOCUMENTS = 100, 2_000
MEDIAN_TOKENS, SIGMA, MOST_TOKENS = 97.0, 0.45, 262  # of a pair, as in bench.workload
KINDS = 64  # requests with different documents; each is built once


@dataclass(frozen=True)
class Request:
    """A request, when it arrives, and which documents it has."""

    at: float  # seconds
    documents: int
    kind: int = 0  # selects the lengths of its documents
    bulk: bool = False


@cache
def lengths_of(documents: int, kind: int) -> tuple[int, ...]:
    """Return the tokens of each document."""
    rng = random.Random(1000 * documents + kind)
    return tuple(
        min(MOST_TOKENS, round(rng.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA))) for _ in range(documents)
    )


@cache
def mean_tokens(documents: int) -> float:
    """Return the mean tokens of a request over its kinds."""
    return sum(sum(lengths_of(documents, kind)) for kind in range(KINDS)) / KINDS


def job_with(lengths: Iterable[int]) -> Job:
    """Return the work of a request whose sequences have these lengths, in tokens."""
    job = Job(("score",), [], [])
    # Longest first, as the engine does. Scheduling reads nothing of a sequence but its length.
    job.work = [Work(range(n), i, job) for i, n in enumerate(sorted(lengths, reverse=True))]  # type: ignore[arg-type]
    return job


@cache
def _job(documents: int, kind: int, part: int, parts: int) -> Job:
    lengths = lengths_of(documents, kind)
    return job_with(lengths[documents * part // parts : documents * (part + 1) // parts])


def job_of(request: Request, part: int = 0, parts: int = 1) -> Job:
    """Return the work of a part of a request: consecutive documents. The queue does not change a job."""
    return _job(request.documents, request.kind, part, parts)


def arrivals(
    rng: random.Random, rate: float, documents: int, count: int, bulk: bool = False
) -> Iterator[Request]:
    """Yield `count` requests with exponential distances, `rate` a second on average."""
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        yield Request(at, documents, rng.randrange(KINDS), bulk)
