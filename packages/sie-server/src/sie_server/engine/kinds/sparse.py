"""Reading out encoders with sparse vectors: bge-m3 (dense, sparse, multivector and their scores) and SPLADE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sie_server.engine.job import QUERY, Job, Sparse, Vectors, Work
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import pool, unit
from sie_server.models.heads.sparse import M3Head, M3Spec, ScoreMode, SpladeHead


@dataclass(frozen=True)
class M3Scoring:
    """Which of bge-m3's similarities make the score; `weights` of dense, sparse and multivector for `weighted`."""

    mode: ScoreMode = "weighted"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def combine(self, dense: float, sparse: float, multivector: float) -> float:
        """As FlagEmbedding's `compute_score`: the weighted sum over the sum of the weights."""
        parts = (dense, sparse, multivector)
        if self.mode != "weighted":
            return parts[("dense", "sparse", "multivector").index(self.mode)]
        return sum(w * p for w, p in zip(self.weights, parts, strict=True)) / sum(self.weights)


@dataclass(frozen=True)
class M3Vectors:
    """One text, in all three ways."""

    dense: Tensor  # [hidden] fp32
    lexical: dict[int, float]  # token id → weight above 0
    tokens: Tensor  # [tokens - 1, hidden] fp32, all but [CLS]


class M3Reader:
    """bge-m3: a query's vectors are kept in its job, documents are scored against them."""

    readout: Readout = "all"

    def __init__(self, spec: M3Spec, head: M3Head, dropped: frozenset[int]) -> None:
        self._spec, self._head, self._dropped = spec, head, dropped

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
        pooled = pool(hidden, batch, self._spec.pooling)
        dense = unit(pooled) if self._spec.normalize else pooled
        lexical, tokens = self._head.lexical(hidden), self._head.tokens(hidden)
        texts: list[M3Vectors | None] = [None] * len(works)
        for packed, place in enumerate(batch.order):
            start, end = batch.starts[packed], batch.starts[packed] + batch.lengths[packed]
            weights = self._lexical(batch.ids[start:end], lexical[start:end])
            texts[place] = M3Vectors(dense[packed].clone(), weights, unit(tokens[start + 1 : end]))
        for work, text in zip(works, texts, strict=True):
            if work.index == QUERY:
                work.job.query_m3 = text
        return [self._result(work, text) for work, text in zip(works, texts, strict=True)]

    def _lexical(self, ids: Tensor, weights: Tensor) -> dict[int, float]:
        best: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            # not `weight > 0`: a NaN has to come through and be refused
            if token not in self._dropped and not weight <= best.get(token, 0.0):
                best[token] = weight
        return best

    def _result(self, work: Work, text: M3Vectors | None) -> Any:
        assert text is not None
        if work.index == QUERY:
            return None
        if "score" in work.job.outputs:
            return _score(work.job, text)
        vectors: Vectors = {}
        if "dense" in work.job.outputs:
            vectors["dense"] = text.dense.cpu().numpy()
        if "sparse" in work.job.outputs:
            ids = sorted(text.lexical)
            vectors["sparse"] = Sparse(
                np.array(ids, np.int32), np.array([text.lexical[i] for i in ids], np.float32)
            )
        if "multivector" in work.job.outputs:
            vectors["multivector"] = text.tokens.cpu().numpy().copy()
        return vectors


def _score(job: Job, document: M3Vectors) -> float:
    query, scoring = job.query_m3, job.m3_scoring or M3Scoring()
    assert query is not None  # its work comes first in the job
    dense = float(query.dense @ document.dense)
    sparse = sum(weight * document.lexical.get(token, 0.0) for token, weight in query.lexical.items())
    multivector = float((query.tokens @ document.tokens.T).amax(1).mean())
    return scoring.combine(dense, sparse, multivector)


class SpladeReader:
    """SPLADE: one sparse vector per text; a sequence at a time, as its logits are [tokens, vocabulary]."""

    readout: Readout = "all"

    def __init__(self, head: SpladeHead) -> None:
        self._head = head

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> list[Any]:
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
