"""Replicas, machines and cost for a rate of requests: the arithmetic of docs/scale.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

RATES = (1, 100, 10_000)  # requests per second
DOCUMENTS = 100  # per request
PRICED = "2026-01-19"  # AWS, us-east-1, on demand, Linux; as in Karpenter's table, generated from the AWS price list


@dataclass(frozen=True)
class Replica:
    """The throughput of one replica, and the machine that it runs on."""

    model: str
    machine: str
    pairs_per_second: float
    source: str
    instance: str
    price: float  # US dollars per hour for one replica


# Times of 100 documents are those of docs/performance.md.
OURS = (
    Replica("MiniLM-L6", "2 cores, AVX512-BF16", 100 / 0.784, "measured", "c7a.large", 0.10264),
    Replica("XLM-R base", "2 cores, AVX512-BF16", 100 / 5.439, "measured", "c7a.large", 0.10264),
)
# sentence-transformers in bf16 on an H100 80 GB: Hugging Face's article on the ettin rerankers, May 2026.
PUBLISHED = (
    Replica("MiniLM-L6", "one H100", 3_817, "published, not ours", "p5.4xlarge", 6.88),
    Replica("bge-reranker-v2-m3", "one H100", 1_569, "published, not ours", "p5.4xlarge", 6.88),
)
REPLICAS = OURS + PUBLISHED


@dataclass(frozen=True)
class Plan:
    """The replicas for a rate, the load of each, and what they cost."""

    replica: Replica
    rate: float
    replicas: int
    load: float

    @property
    def dollars_per_hour(self) -> float:
        return self.replicas * self.replica.price

    @property
    def dollars_per_million(self) -> float:
        """Return the cost of a million documents."""
        return self.dollars_per_hour / (3600 * self.rate * DOCUMENTS) * 1e6


def plan(replica: Replica, rate: float, most_load: Callable[[int], float]) -> Plan:
    """Return the fewest replicas whose load is at most `most_load(replicas)`, which must not fall with the number."""
    needed = rate * DOCUMENTS / replica.pairs_per_second  # replicas at a load of 1
    count = max(1, math.ceil(needed))
    while needed / count > most_load(count):
        count += 1
    return Plan(replica, rate, count, needed / count)
