"""Encoders with sparse vectors: bge-m3 (dense, sparse and multivector, and scores made from them) and SPLADE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sie_server.engine.job import QUERY, Floats, Job, M3Query, M3Scoring, Sparse, Vectors, Work
from sie_server.engine.kinds.base import Kind, Parts, Reader
from sie_server.engine.kinds.embeddings import late_interaction_input
from sie_server.engine.kinds.pending import Outputs, Pending
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.models.batch import Ids, PackedBatch, Readout
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.pooling import pool
from sie_server.models.heads.reduction import largest
from sie_server.models.heads.sparse import M3_FILES, M3Head, M3Spec, SpladeHead

VALUES = 2**24  # of vectors on the device at a time: 64 MiB


class M3Reader(Reader):
    """Reads bge-m3: a query's vectors are stored in its job, and documents are scored against them."""

    readout: Readout = "all"

    def __init__(self, spec: M3Spec, head: M3Head, dropped: frozenset[int]) -> None:
        """Create the reader; `dropped` are the token ids that have no lexical weight."""
        self._spec, self._head, self._dropped = spec, head, dropped

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        pooled = pool(hidden, batch, self._spec.pooling)
        dense = unit(pooled) if self._spec.normalize else pooled
        tokens = unit(self._head.tokens(hidden))
        for packed, place in enumerate(batch.order):
            if works[place].index == QUERY:
                own = tokens[_tokens_of(batch, packed)].clone()
                works[place].job.query_m3 = M3Query(dense[packed].clone(), own)
        results = _M3Results(batch, works, self._dropped)
        results.add_vectors({"dense": dense, "multivector": tokens}, self._head.lexical(hidden))
        for job in dict.fromkeys(work.job for work in works if "score" in work.job.outputs):
            if any(work.job is job and work.index != QUERY for work in works):
                results.add_scores(job, _similarities(job, dense, tokens, batch))
        return Pending(results.outputs.tensors, results.finish)


class _M3Results:
    """The results of one pass."""

    def __init__(self, batch: PackedBatch, works: list[Work], dropped: frozenset[int]) -> None:
        self.outputs = Outputs()
        self._batch, self._works, self._dropped = batch, works, dropped
        self._vectors: dict[str, int] = {}
        self._scores: dict[Job, int] = {}

    def add_vectors(self, vectors: dict[str, Tensor], lexical: Tensor) -> None:
        """Fetch the vectors that a job requests: [sequences, hidden] and [rows, hidden]; `lexical` is [rows]."""
        for name, tensor in vectors.items():
            if any(name in work.job.outputs for work in self._works):
                self._vectors[name] = self.outputs.add(tensor)
        self._lexical = self.outputs.add(lexical)

    def add_scores(self, job: Job, scores: Tensor) -> None:
        """Fetch [2, sequences]: the dense and the multivector scores of a job's query."""
        self._scores[job] = self.outputs.add(scores)

    def finish(self, arrays: list[Any]) -> list[Any]:
        lexical: list[dict[int, float]] = [{}] * len(self._works)
        for packed, place in enumerate(self._batch.order):
            work, start = self._works[place], self._batch.starts[packed]
            weights = arrays[self._lexical][start : start + self._batch.lengths[packed]]
            lexical[place] = self._best(work.tokens.ids, weights)
            if work.index == QUERY and work.job.query_m3:
                work.job.query_m3.lexical = lexical[place]
        results: list[Any] = [None] * len(self._works)
        for packed, place in enumerate(self._batch.order):
            job = self._works[place].job
            if self._works[place].index == QUERY:
                continue
            if job in self._scores:
                dense, multivector = arrays[self._scores[job]][:, packed].tolist()
                results[place] = _score(job, dense, lexical[place], multivector)
            else:
                results[place] = self._requested(job, packed, lexical[place], arrays)
        return results

    def _best(self, ids: Ids, weights: Floats) -> dict[int, float]:
        best: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            # not `weight > 0`: a NaN must reach the result, where it is refused
            if token not in self._dropped and not weight <= best.get(token, 0.0):
                best[token] = weight
        return best

    def _requested(self, job: Job, packed: int, lexical: dict[int, float], arrays: list[Any]) -> Vectors:
        vectors: Vectors = {}
        if "dense" in job.outputs:
            vectors["dense"] = arrays[self._vectors["dense"]][packed].copy()
        if "sparse" in job.outputs:
            ids = sorted(lexical)
            values = [lexical[i] for i in ids]
            vectors["sparse"] = Sparse(np.array(ids, np.int32), np.array(values, np.float32))
        if "multivector" in job.outputs:
            vectors["multivector"] = arrays[self._vectors["multivector"]][
                _tokens_of(self._batch, packed)
            ].copy()
        return vectors


def _tokens_of(batch: PackedBatch, packed: int) -> slice:
    """Return the rows of a sequence that have a token vector: all but [CLS]."""
    return slice(batch.starts[packed] + 1, batch.starts[packed] + batch.lengths[packed])


def _similarities(job: Job, dense: Tensor, tokens: Tensor, batch: PackedBatch) -> Tensor:
    """Return the dense and the multivector scores of a job's query with every sequence, [2, sequences]."""
    query = job.query_m3
    if query is None:
        raise RuntimeError("a bge-m3 document was run before its query")
    matches = tokens @ query.tokens.T  # [rows, query tokens]
    matches.index_fill_(0, batch.first_rows.long(), float("-inf"))
    return torch.stack((dense @ query.dense, largest(matches, batch).mean(1)))


def _score(job: Job, dense: float, lexical: dict[int, float], multivector: float) -> float:
    query, scoring = job.query_m3, job.m3_scoring or M3Scoring()
    if query is None or query.lexical is None:
        raise RuntimeError("a bge-m3 document was scored before its query's pass had ended")
    sparse = sum(weight * lexical.get(token, 0.0) for token, weight in query.lexical.items())
    return scoring.combine(dense, sparse, multivector)


class SpladeReader(Reader):
    """Reads one SPLADE vector per text, one sequence at a time because its logits are [tokens, vocabulary]."""

    readout: Readout = "all"

    def __init__(self, head: SpladeHead, vocabulary: int) -> None:
        self._head, self._vocabulary = head, vocabulary

    def most(self) -> int:
        """See `Reader.most`."""
        return max(1, VALUES // self._vocabulary)

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        states = self._head.transformed(hidden)
        values = torch.empty(batch.count, self._vocabulary, dtype=torch.float32, device=hidden.device)
        for packed, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
            values[packed] = self._head.pooled(states[start : start + length])

        def finish(arrays: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(works)
            for row, place in zip(arrays[0], batch.order, strict=True):
                kept = np.flatnonzero(row)
                results[place] = {"sparse": Sparse(kept.astype(np.int32), row[kept])}
            return results

        return Pending([values], finish)


def _m3_reader(parts: Parts, weights: CheckpointWeights) -> M3Reader:
    files = [weights.file(name) for name in M3_FILES]
    special = parts.tokenizer.ids_of(parts.head.special_tokens)
    return M3Reader(parts.head, M3Head(parts.spec.backbone.hidden_size, *files), special)


def _splade_reader(parts: Parts, weights: CheckpointWeights) -> SpladeReader:
    backbone = parts.spec.backbone
    return SpladeReader(SpladeHead(parts.head, backbone, weights), backbone.vocab_size)


M3 = Kind(input=late_interaction_input, reader=_m3_reader)
SPLADE = Kind(input=late_interaction_input, reader=_splade_reader)
