"""Hidden states → results of the works in a batch; one reader per kind of checkpoint."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.engine.document_cache import CachedDocument, ModelDocuments
from sie_server.engine.job import QUERY, Job, Vectors, Work
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier, pool, pooled_states, pooling_readout, unit
from sie_server.models.heads.late_interaction import DocumentVectors, QueryVectors, maxsim, weighted_maxsim
from sie_server.models.heads.modular import ModuleStack
from sie_server.models.spec import EmbeddingSpec

Floats = npt.NDArray[np.float32]


class Reader(Protocol):
    """Reads a forward pass out."""

    readout: Readout

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        """One result per work, in the order of `works`."""
        ...


class LogitReader:
    """Cross-encoders and causal rerankers: one raw logit per pair."""

    def __init__(self, head: Classifier) -> None:
        self._head = head
        self.readout: Readout = head.readout

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        results: list[Any] = [None] * len(works)
        for place, logit in zip(batch.order, self._head.logits(hidden, batch).tolist(), strict=True):
            results[place] = logit
        return results


class VectorReader:
    """Encoders: pooled vectors, token vectors, and late-interaction scores from both."""

    def __init__(
        self,
        spec: EmbeddingSpec,
        token_weights: Tensor | None,
        modules: ModuleStack,
        cache: ModelDocuments | None = None,
    ) -> None:
        self._spec, self._token_weights = spec, token_weights  # weights: [vocabulary] fp32
        self._modules, self._cache = modules, cache
        self.readout: Readout = "all" if spec.token_vectors else pooling_readout(spec.pooling)

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        states = pool if self.readout == "all" else pooled_states
        pooled = self._modules(states(hidden, batch, self._spec.pooling))
        pooled = unit(pooled) if self._spec.normalize else pooled
        tokens = unit(hidden.float()) if self._spec.token_vectors else hidden
        self._keep_queries(pooled, tokens, batch, works)
        results: list[Any] = [None] * len(works)
        for job, places in _by_job(batch, works).items():
            if "score" in job.outputs:
                scores = self._scores(job, pooled, tokens, batch)
                for packed, place in places:
                    results[place] = scores[packed]
                    self._keep_document(packed, pooled, tokens, batch, works[place])
            else:
                vectors = _Vectors(job.outputs, pooled, tokens)
                for packed, place in places:
                    results[place] = vectors.of(packed, batch)
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

    def _keep_document(
        self, packed: int, pooled: Tensor, tokens: Tensor, batch: PackedBatch, work: Work
    ) -> None:
        if self._cache and work.key:
            rows = slice(batch.starts[packed], batch.starts[packed] + batch.lengths[packed])
            vectors = DocumentVectors(tokens[rows].clone(), pooled[packed].clone())
            self._cache.put(work.key, CachedDocument(vectors, work.cut, len(work.tokens)))

    def _scores(self, job: Job, pooled: Tensor, tokens: Tensor, batch: PackedBatch) -> list[float]:
        query, weight = job.query_vectors, self._spec.dense_weight
        if query is None or query.pooled is None or weight is None:
            raise RuntimeError("a late-interaction document came before its query")
        return (weight * (pooled @ query.pooled) + weighted_maxsim(query, tokens, batch)).tolist()


def score_known(job: Job, device: torch.device, dense_weight: float | None) -> None:
    """Score the documents of a job whose vectors were there before it; the query's are by now."""
    query = job.query_vectors
    if query is None:
        raise RuntimeError("known documents came before their query")
    # the same document twice is scored once, so that it ties with itself to the last bit
    places: dict[int, list[int]] = {}
    documents = []
    for index, vectors in job.known:
        same = places.setdefault(id(vectors), [])
        if not same:
            documents.append(vectors.to(device))
        same.append(index)
    scores = maxsim(query.to(device), documents, dense_weight)
    for indices, score in zip(places.values(), scores, strict=True):
        for index in indices:
            job.results[index] = score


def _by_job(batch: PackedBatch, works: list[Work]) -> dict[Job, list[tuple[int, int]]]:
    """Job → (packed place, caller's place) of its texts; queries have no result."""
    jobs: dict[Job, list[tuple[int, int]]] = {}
    for packed, place in enumerate(batch.order):
        if works[place].index != QUERY:
            jobs.setdefault(works[place].job, []).append((packed, place))
    return jobs


class _Vectors:
    """What one encode job asked for of a batch, on the host."""

    def __init__(self, outputs: tuple[str, ...], pooled: Tensor, tokens: Tensor) -> None:
        self._dense = _to_host(pooled) if "dense" in outputs else None
        self._tokens = _to_host(tokens) if "multivector" in outputs else None

    def of(self, packed: int, batch: PackedBatch) -> Vectors:
        """Copies: a view would keep the whole batch alive for as long as one answer is being written."""
        vectors: Vectors = {}
        if self._dense is not None:
            vectors["dense"] = self._dense[packed].copy()
        if self._tokens is not None:
            start = batch.starts[packed]
            vectors["multivector"] = self._tokens[start : start + batch.lengths[packed]].copy()
        return vectors


def _to_host(tensor: Tensor) -> Floats:
    host: Floats = tensor.float().cpu().numpy()
    return host
