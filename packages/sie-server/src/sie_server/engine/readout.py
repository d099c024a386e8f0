"""Hidden states → results of the works in a batch; one reader per kind of checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sie_server.engine.job import QUERY, Job, Vectors, Work
from sie_server.models.heads import ClassifierHead, pool, unit
from sie_server.models.late_interaction import QueryVectors, weighted_maxsim
from sie_server.models.packed import PackedBatch
from sie_server.models.spec import EmbeddingSpec

Floats = npt.NDArray[np.float32]


class Reader(Protocol):
    """Reads a forward pass out."""

    first_token_only: bool

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        """One result per work, in the order of `works`."""
        ...


class LogitReader:
    """Cross-encoders: one raw logit per pair."""

    first_token_only = True

    def __init__(self, head: ClassifierHead) -> None:
        self._head = head

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        results: list[Any] = [None] * len(works)
        for place, logit in zip(batch.order, self._head.logits(hidden).tolist(), strict=True):
            results[place] = logit
        return results


class VectorReader:
    """Encoders: pooled vectors, token vectors, and late-interaction scores from both."""

    first_token_only = False

    def __init__(self, spec: EmbeddingSpec, token_weights: Tensor | None) -> None:
        self._spec, self._token_weights = spec, token_weights  # weights: [vocabulary] fp32

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        pooled = pool(hidden, batch, self._spec.pooling)
        pooled = unit(pooled) if self._spec.normalize else pooled
        tokens = unit(hidden.float()) if self._spec.token_vectors else hidden
        self._keep_queries(pooled, tokens, batch, works)
        results: list[Any] = [None] * len(works)
        for job, places in _by_job(batch, works).items():
            if "score" in job.outputs:
                scores = self._scores(job, pooled, tokens, batch)
                for packed, place in places:
                    results[place] = scores[packed]
            else:
                vectors = _to_host(pooled), _to_host(tokens)
                for packed, place in places:
                    results[place] = _vectors(job, packed, batch, *vectors)
        return results

    def _keep_queries(self, pooled: Tensor, tokens: Tensor, batch: PackedBatch, works: list[Work]) -> None:
        for packed, place in enumerate(batch.order):
            work = works[place]
            if work.index == QUERY and self._token_weights is not None:
                rows = slice(batch.starts[packed], batch.starts[packed] + batch.lengths[packed])
                weights = self._token_weights[batch.ids[rows].long()]
                work.job.query_vectors = QueryVectors.build(
                    tokens[rows].clone(), weights, pooled[packed].clone()
                )

    def _scores(self, job: Job, pooled: Tensor, tokens: Tensor, batch: PackedBatch) -> list[float]:
        query, weight = job.query_vectors, self._spec.dense_weight
        if query is None or weight is None:
            raise RuntimeError("a late-interaction document came before its query")
        return (weight * (pooled @ query.pooled) + weighted_maxsim(query, tokens, batch)).tolist()


def _by_job(batch: PackedBatch, works: list[Work]) -> dict[Job, list[tuple[int, int]]]:
    """Job → (packed place, caller's place) of its texts; queries have no result."""
    jobs: dict[Job, list[tuple[int, int]]] = {}
    for packed, place in enumerate(batch.order):
        if works[place].index != QUERY:
            jobs.setdefault(works[place].job, []).append((packed, place))
    return jobs


def _vectors(job: Job, packed: int, batch: PackedBatch, pooled: Floats, tokens: Floats) -> Vectors:
    rows = slice(batch.starts[packed], batch.starts[packed] + batch.lengths[packed])
    # copies: a view would keep the whole batch alive for as long as one answer is being written
    given = {"dense": lambda: pooled[packed].copy(), "multivector": lambda: tokens[rows].copy()}
    return {name: given[name]() for name in job.outputs}


def _to_host(tensor: Tensor) -> Floats:
    host: Floats = tensor.float().cpu().numpy()
    return host
