"""Encoders with sparse vectors: bge-m3 (dense, sparse and multivector, and scores made from them) and SPLADE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sie_server.engine.job import QUERY, Job, M3Scoring, M3Vectors, Sparse, Vectors, Work
from sie_server.engine.kinds.base import Kind, Parts
from sie_server.engine.kinds.embeddings import late_interaction_input
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.pooling import pool
from sie_server.models.heads.sparse import M3_FILES, M3Head, M3Spec, SpladeHead


class M3Reader:
    """Reads bge-m3: a query's vectors are stored in its job, and documents are scored against them."""

    readout: Readout = "all"

    def __init__(self, spec: M3Spec, head: M3Head, dropped: frozenset[int]) -> None:
        """Create the reader; `dropped` are the token ids that have no lexical weight."""
        self._spec, self._head, self._dropped = spec, head, dropped

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        """See `Reader.read`."""
        pooled = pool(hidden, batch, self._spec.pooling)
        dense = unit(pooled) if self._spec.normalize else pooled
        lexical, tokens = self._head.lexical(hidden), self._head.tokens(hidden)
        texts: dict[int, M3Vectors] = {}  # by place in `works`
        for packed, place in enumerate(batch.order):
            start, end = batch.starts[packed], batch.starts[packed] + batch.lengths[packed]
            weights = self._lexical(batch.ids[start:end], lexical[start:end])
            texts[place] = M3Vectors(dense[packed].clone(), weights, unit(tokens[start + 1 : end]))
        for place, work in enumerate(works):
            if work.index == QUERY:
                work.job.query_m3 = texts[place]
        return [_result(work, texts[place]) for place, work in enumerate(works)]

    def _lexical(self, ids: Tensor, weights: Tensor) -> dict[int, float]:
        best: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            # not `weight > 0`: a NaN must reach the result, where it is refused
            if token not in self._dropped and not weight <= best.get(token, 0.0):
                best[token] = weight
        return best


def _result(work: Work, text: M3Vectors) -> Any:
    if work.index == QUERY:
        return None
    if "score" in work.job.outputs:
        return _score(work.job, text)
    vectors: Vectors = {}
    if "dense" in work.job.outputs:
        vectors["dense"] = text.dense.cpu().numpy()
    if "sparse" in work.job.outputs:
        ids = sorted(text.lexical)
        values = [text.lexical[i] for i in ids]
        vectors["sparse"] = Sparse(np.array(ids, np.int32), np.array(values, np.float32))
    if "multivector" in work.job.outputs:
        vectors["multivector"] = text.tokens.cpu().numpy().copy()
    return vectors


def _score(job: Job, document: M3Vectors) -> float:
    query, scoring = job.query_m3, job.m3_scoring or M3Scoring()
    if query is None:
        raise RuntimeError("a bge-m3 document was run before its query")
    dense = float(query.dense @ document.dense)
    sparse = sum(weight * document.lexical.get(token, 0.0) for token, weight in query.lexical.items())
    multivector = float((query.tokens @ document.tokens.T).amax(1).mean())
    return scoring.combine(dense, sparse, multivector)


class SpladeReader:
    """Reads one SPLADE vector per text, one sequence at a time because its logits are [tokens, vocabulary]."""

    readout: Readout = "all"

    def __init__(self, head: SpladeHead) -> None:
        self._head = head

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        """See `Reader.read`."""
        states = self._head.transformed(hidden)
        results: list[Any] = [None] * len(works)
        for packed, place in enumerate(batch.order):
            start = batch.starts[packed]
            values = self._head.pooled(states[start : start + batch.lengths[packed]])
            kept = torch.nonzero(values).squeeze(1)
            results[place] = {
                "sparse": Sparse(kept.to(torch.int32).cpu().numpy(), values[kept].cpu().numpy())
            }
        return results


def _m3_reader(parts: Parts, weights: CheckpointWeights) -> M3Reader:
    files = [weights.file(name) for name in M3_FILES]
    special = parts.tokenizer.ids_of(parts.head.special_tokens)
    return M3Reader(parts.head, M3Head(parts.spec.backbone.hidden_size, *files), special)


def _splade_reader(parts: Parts, weights: CheckpointWeights) -> SpladeReader:
    return SpladeReader(SpladeHead(parts.head, parts.spec.backbone, weights))


M3 = Kind(input=late_interaction_input, reader=_m3_reader)
SPLADE = Kind(input=late_interaction_input, reader=_splade_reader)
