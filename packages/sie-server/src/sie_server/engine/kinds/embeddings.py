"""Embeddings: an encoder reads query and documents apart; late interaction scores them from their vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.document_cache import CachedDocument, ModelDocuments
from sie_server.engine.job import QUERY, Chunking, Floats, Job, ScoreTexts, Vectors, Work, build_job
from sie_server.engine.kinds.base import Kind, Parts, plain_tokenizer
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.chunks import split
from sie_server.engine.text.jobs import document_job, window_job
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.late_interaction import (
    DocumentVectors,
    QueryVectors,
    TokenMatches,
    maxsim,
    weighted_maxsim,
)
from sie_server.models.heads.modular import ModuleStack
from sie_server.models.heads.pooling import pool, pooled_states, pooling_readout
from sie_server.models.layers.adapted import one_row_each
from sie_server.models.spec import EmbeddingSpec, ModelSpec


class LateInteractionInput:
    """Builds jobs in which the query comes first and each document is scored against its vectors."""

    def __init__(self, tokenizer: TextTokenizer, cache: ModelDocuments | None = None) -> None:
        self._tokenizer, self._cache = tokenizer, cache

    def score_job(self, texts: ScoreTexts) -> Job:
        """See `TextInput.score_job`."""
        job = document_job(texts.documents, texts.limit, self._tokenizer.singles, self._cache)
        return self._with_query(job, texts)

    def chunk_job(self, texts: ScoreTexts, chunking: Chunking) -> Job:
        """See `ChunkInput.chunk_job`."""
        room = self._tokenizer.single_room(texts.limit)
        parts = split(self._tokenizer, texts.documents, room, chunking)
        return self._with_query(window_job(parts, self._tokenizer.single, self._cache), texts)

    def encode_job(
        self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool, prompt: str = ""
    ) -> Job:
        """See `EncodeInput.encode_job`."""
        return build_job(outputs, *self._tokenizer.singles(texts, limit, prefix=prompt))

    def _with_query(self, job: Job, texts: ScoreTexts) -> Job:
        [tokens], [job.query_truncated] = self._tokenizer.singles([texts.query], texts.limit)
        job.work.insert(0, Work(tokens, QUERY, job))
        return job


class VectorReader:
    """Reads pooled vectors, token vectors, and late-interaction scores made from both."""

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
        """See `Reader.read`."""
        states = pool if self.readout == "all" else pooled_states
        with one_row_each():
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
            elif "token_scores" in job.outputs:
                for packed, place in places:
                    results[place] = self._matches(job, pooled[packed], tokens[_rows(batch, packed)])
            else:
                vectors = _HostVectors(job.outputs, pooled, tokens)
                for packed, place in places:
                    results[place] = vectors.of(packed, batch)
        return results

    def _keep_queries(self, pooled: Tensor, tokens: Tensor, batch: PackedBatch, works: list[Work]) -> None:
        if self._token_weights is None:
            return
        for packed, place in enumerate(batch.order):
            work = works[place]
            if work.index == QUERY:
                rows = _rows(batch, packed)
                weights = self._token_weights[batch.ids[rows].long()]
                work.job.query_vectors = QueryVectors.build(
                    tokens[rows].clone(), weights, pooled[packed].clone()
                )

    def _keep_document(
        self, packed: int, pooled: Tensor, tokens: Tensor, batch: PackedBatch, work: Work
    ) -> None:
        if self._cache and work.key:
            vectors = DocumentVectors(tokens[_rows(batch, packed)].clone(), pooled[packed].clone())
            self._cache.put(work.key, CachedDocument(vectors, work.cut, len(work.tokens)))

    def _scores(self, job: Job, pooled: Tensor, tokens: Tensor, batch: PackedBatch) -> list[float]:
        query = _query_of(job)
        return (self._pooled_score(query, pooled) + weighted_maxsim(query, tokens, batch)).tolist()

    def _matches(self, job: Job, pooled: Tensor, tokens: Tensor) -> TokenMatches:
        query = _query_of(job)
        return TokenMatches.of(query, tokens, pooled=self._pooled_score(query, pooled).item())

    def _pooled_score(self, query: QueryVectors, pooled: Tensor) -> Tensor:
        assert (
            query.pooled is not None and self._spec.dense_weight is not None
        )  # a model with scores has both
        return self._spec.dense_weight * (pooled @ query.pooled)


def _query_of(job: Job) -> QueryVectors:
    if job.query_vectors is None:
        raise RuntimeError("a late-interaction document was run before its query")
    return job.query_vectors


def score_known(job: Job, device: torch.device, dense_weight: float | None) -> None:
    """Score the documents in `job.known`, whose vectors need no forward pass.

    Raises:
        RuntimeError: the query's vectors are missing.
    """
    query = job.query_vectors
    if query is None:
        raise RuntimeError("documents with known vectors were scored before their query was run")
    # equal documents are scored once, so that they tie to the last bit
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


def _rows(batch: PackedBatch, packed: int) -> slice:
    """Return the rows of the `packed`-th sequence's tokens."""
    return slice(batch.starts[packed], batch.starts[packed] + batch.lengths[packed])


def _by_job(batch: PackedBatch, works: list[Work]) -> dict[Job, list[tuple[int, int]]]:
    """Return job → (packed place, caller's place) of its texts. Queries have no result and are left out."""
    jobs: dict[Job, list[tuple[int, int]]] = {}
    for packed, place in enumerate(batch.order):
        if works[place].index != QUERY:
            jobs.setdefault(works[place].job, []).append((packed, place))
    return jobs


class _HostVectors:
    """The requested outputs of a batch, copied to the host."""

    def __init__(self, outputs: tuple[str, ...], pooled: Tensor, tokens: Tensor) -> None:
        self._dense = _to_host(pooled) if "dense" in outputs else None
        self._tokens = _to_host(tokens) if "multivector" in outputs else None

    def of(self, packed: int, batch: PackedBatch) -> Vectors:
        """Copy the vectors of one sequence; a view would keep the whole batch alive until the answer is written."""
        vectors: Vectors = {}
        if self._dense is not None:
            vectors["dense"] = self._dense[packed].copy()
        if self._tokens is not None:
            vectors["multivector"] = self._tokens[_rows(batch, packed)].copy()
        return vectors


def _to_host(tensor: Tensor) -> Floats:
    host: Floats = tensor.float().cpu().numpy()
    return host


def _tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    tokenizer = plain_tokenizer(directory, spec)
    if isinstance(spec.head, EmbeddingSpec) and "last" in spec.head.pooling:
        tokenizer.check_end(directory)
    return tokenizer


def late_interaction_input(parts: Parts) -> LateInteractionInput:
    """Build the input of encoders that read query and documents apart."""
    return LateInteractionInput(parts.tokenizer, parts.documents)


def _reader(parts: Parts, weights: CheckpointWeights) -> VectorReader:
    head: EmbeddingSpec = parts.head
    table = None
    if head.dense_weight is not None:
        rows = parts.spec.backbone.vocab_size
        table = weights.at("scorer").take("token_weights", rows, dtype=torch.float32)
    return VectorReader(head, table, ModuleStack(head.modules, weights), parts.documents)


EMBEDDINGS = Kind(input=late_interaction_input, reader=_reader, tokenizer=_tokenizer)
