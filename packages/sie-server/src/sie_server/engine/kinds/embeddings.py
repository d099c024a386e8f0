"""Embeddings: an encoder reads query and documents apart; late interaction scores them from their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.engine.document_cache import CachedDocument, ModelDocuments
from sie_server.engine.job import QUERY, Chunking, Job, ScoreTexts, Work, build_job
from sie_server.engine.kinds.base import Kind, Parts, Reader, plain_tokenizer
from sie_server.engine.kinds.pending import Outputs, Pending
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

    apart = True

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


class VectorReader(Reader):
    """Reads pooled vectors, token vectors, and late-interaction scores made from both."""

    def __init__(
        self,
        spec: EmbeddingSpec,
        token_weights: Tensor | None,
        modules: ModuleStack,
        cache: ModelDocuments | None = None,
    ) -> None:
        self._spec, self._token_weights = spec, token_weights  # weights: [vocabulary] fp32
        self._host_weights = None if token_weights is None else token_weights.cpu().numpy()
        self._modules, self._cache = modules, cache
        self.readout: Readout = "all" if spec.token_vectors else pooling_readout(spec.pooling)

    def picks(self, work: Work) -> npt.NDArray[np.int64] | None:
        """Return the places of a query's tokens that have a weight."""
        if self._host_weights is None or work.index != QUERY:
            return None
        return np.flatnonzero(self._host_weights[work.tokens.ids] > 0)

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        states = pool if self.readout == "all" else pooled_states
        with one_row_each():
            pooled = self._modules(states(hidden, batch, self._spec.pooling))
        pooled = unit(pooled) if self._spec.normalize else pooled
        tokens = unit(hidden.float()) if self._spec.token_vectors else hidden
        self._keep_queries(pooled, tokens, batch, works)
        outputs, finishes = _HostVectors(pooled, tokens), []
        for job, places in _by_job(batch, works).items():
            if "score" in job.outputs:
                finishes.append(_indexed(places, outputs.add(self._scores(job, pooled, tokens, batch))))
                for packed, place in places:
                    self._keep_document(packed, pooled, tokens, batch, works[place])
            elif "token_scores" in job.outputs:
                finishes.append(self._matches(job, places, pooled, tokens, batch, outputs))
            else:
                finishes.append(outputs.vectors(job.outputs, places, batch))

        def finish(arrays: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(works)
            for own in finishes:
                for place, result in own(arrays):
                    results[place] = result
            return results

        return Pending(outputs.tensors, finish)

    def _keep_queries(self, pooled: Tensor, tokens: Tensor, batch: PackedBatch, works: list[Work]) -> None:
        table = self._token_weights
        if table is None:
            return
        for packed, place in enumerate(batch.order):
            work, places = works[place], self.picks(works[place])
            if places is not None and batch.picked:
                rows = batch.picked.rows[batch.picked.of(packed)]
                total = table[batch.ids[_rows(batch, packed)]].sum()
                own = tokens[rows], table[batch.ids[rows]]
                work.job.query_vectors = QueryVectors.build(*own, total, pooled[packed].clone(), places)

    def _keep_document(
        self, packed: int, pooled: Tensor, tokens: Tensor, batch: PackedBatch, work: Work
    ) -> None:
        if self._cache and work.key:
            vectors = DocumentVectors(tokens[_rows(batch, packed)].clone(), pooled[packed].clone())
            self._cache.put(work.key, CachedDocument(vectors, work.cut, len(work.tokens)))

    def _scores(self, job: Job, pooled: Tensor, tokens: Tensor, batch: PackedBatch) -> Tensor:
        query = _query_of(job)
        return self._pooled_score(query, pooled) + weighted_maxsim(query, tokens, batch)

    def _matches(
        self, job: Job, places: Places, pooled: Tensor, tokens: Tensor, batch: PackedBatch, outputs: Outputs
    ) -> Finish:
        query = _query_of(job)
        assert query.weights is not None
        similarities, weights = outputs.add(query.tokens @ tokens.T), outputs.add(query.weights)
        dense = outputs.add(self._pooled_score(query, pooled))

        def finish(arrays: list[Any]) -> Iterator[tuple[int, Any]]:
            for packed, place in places:
                own = arrays[similarities][:, _rows(batch, packed)]
                score = float(arrays[dense][packed])
                yield place, TokenMatches.of(query, arrays[weights], own, pooled=score)

        return finish

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


Places = list[tuple[int, int]]  # packed place and caller's place of each text
Finish = Callable[[list[Any]], Iterable[tuple[int, Any]]]  # arrays → caller's place and result of some works


def _by_job(batch: PackedBatch, works: list[Work]) -> dict[Job, Places]:
    """Return job → the places of its texts. Queries have no result and are left out."""
    jobs: dict[Job, Places] = {}
    for packed, place in enumerate(batch.order):
        if works[place].index != QUERY:
            jobs.setdefault(works[place].job, []).append((packed, place))
    return jobs


def _indexed(places: Places, array: int) -> Finish:
    """Return the value of each text in an array of one value per packed sequence."""

    def finish(arrays: list[Any]) -> Iterator[tuple[int, Any]]:
        values = arrays[array].tolist()
        return ((place, values[packed]) for packed, place in places)

    return finish


class _HostVectors(Outputs):
    """The vectors of a batch; each kind is copied to the host once, if a job requests it."""

    def __init__(self, pooled: Tensor, tokens: Tensor) -> None:
        super().__init__()
        self._made = {"dense": pooled, "multivector": tokens}
        self._added: dict[str, int] = {}

    def vectors(self, names: tuple[str, ...], places: Places, batch: PackedBatch) -> Finish:
        """Return the requested vectors of each text."""
        wanted = [name for name in self._made if name in names]
        for name in wanted:
            if name not in self._added:
                self._added[name] = self.add(self._made[name].float())

        def finish(arrays: list[Any]) -> Iterator[tuple[int, Any]]:
            for packed, place in places:
                # copied: a view would keep the whole batch alive until the answer is written
                whole = {"dense": packed, "multivector": _rows(batch, packed)}
                yield place, {name: arrays[self._added[name]][whole[name]].copy() for name in wanted}

        return finish


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
