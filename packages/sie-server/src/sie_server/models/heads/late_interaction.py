"""Late interaction: scores from a query's token vectors and the token vectors of many documents.

MaxSim is the operator of ColBERT (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832): the best match of each
query token among the document's tokens. ColBERT checkpoints sum these. The embedded model weights the query tokens
and adds the cosine of the pooled vectors with a fixed weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.models.batch import PackedBatch
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.modular import ACTIVATIONS
from sie_server.models.heads.reduction import largest, reduce_segments
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import ProjectionSpec

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
BLOCK_ROWS = 32_768  # document tokens at a time; limits the memory of a request with many long documents


@dataclass(frozen=True)
class QueryVectors:
    """The vectors of a query.

    The embedded model's weights sum to 1, or to 0 when no token has weight. ColBERT has neither weights nor a pooled
    vector.
    """

    tokens: Tensor  # [query tokens, dim] fp32
    weights: Tensor | None  # [query tokens] fp32; None: every token has weight 1
    pooled: Tensor | None  # [dim] fp32
    places: Ids | None = None  # [query tokens], in the query's sequence; None: every token has a vector

    @classmethod
    def build(
        cls, tokens: Tensor, weights: Tensor, total: Tensor, pooled: Tensor, places: Ids
    ) -> QueryVectors:
        """Divide the weights by `total`, the sum over all tokens of the query, unless it is 0.

        `tokens` and `weights` are those of the tokens with a positive weight, at `places`.
        """
        return cls(tokens, torch.where(total > 0, weights / total, weights), pooled, places)

    def to(self, device: torch.device) -> QueryVectors:
        """Return the query on `device`; vectors from a request are on the host until the device thread uses them."""
        return self if self.tokens.device == device else replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True)
class DocumentVectors:
    """The vectors of a document; they own their memory."""

    tokens: Tensor  # [document tokens, dim] fp32, at least one
    pooled: Tensor | None = None  # [dim] fp32

    @property
    def nbytes(self) -> int:
        """The size of the vectors in bytes."""
        return self.tokens.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def to(self, device: torch.device) -> DocumentVectors:
        """Return the document on `device`; see `QueryVectors.to`."""
        return self if self.tokens.device == device else replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True)
class TokenMatches:
    """The comparison of a query's tokens with a document's, on the host. The score is `score()`."""

    query_places: Ids  # [query tokens], in the query's sequence
    weights: Floats  # [query tokens]
    places: Ids  # [document tokens], in the document's sequence
    similarities: Floats  # [query tokens, document tokens]
    pooled: float | None  # part of the score that the pooled vectors add; None: none

    @classmethod
    def of(
        cls,
        query: QueryVectors,
        weights: Floats | None,
        similarities: Floats,
        places: Ids | None = None,
        pooled: float | None = None,
    ) -> TokenMatches:
        """Build it of `similarities`, [query tokens, document tokens], and the query's weights; None: each is 1."""
        count, length = similarities.shape
        return cls(
            query_places=np.arange(count) if query.places is None else query.places,
            weights=np.ones(count, np.float32) if weights is None else weights.copy(),
            places=np.arange(length) if places is None else places,
            similarities=similarities.copy(),
            pooled=pooled,
        )

    def score(self) -> float:
        """Return Σᵢ wᵢ maxⱼ qᵢ·dⱼ and the part of the pooled vectors."""
        best = self.similarities.max(1, initial=-np.inf).astype(np.float64)
        return float(self.weights.astype(np.float64) @ best) + (self.pooled or 0.0)


def maxsim(
    query: QueryVectors, documents: Sequence[DocumentVectors], dense_weight: float | None
) -> list[float]:
    """Return Σᵢ wᵢ maxⱼ qᵢ·dⱼ for each document, plus `dense_weight` times the cosine of the pooled vectors."""
    return [score for part in _scores(query, documents, dense_weight) for score in part.tolist()]


def colbert_scores(query: QueryVectors, tokens: Tensor, batch: PackedBatch, documents: list[int]) -> Tensor:
    """Return Σᵢ maxⱼ qᵢ·dⱼ of a query and each sequence of the batch, [sequences] fp64 on the device.

    `tokens` is [picked tokens, dim] fp32, the vectors of `batch.picked`. Only the scores of `documents`, packed places,
    are used: the others may be anything.
    """
    assert batch.picked is not None
    if tokens.is_cuda or batch.segments is not None:
        # all sequences in one call: selecting those of one query costs more than it saves
        return _summed(query, reduce_segments(tokens @ query.tokens.T, batch.picked.bounds, "max"))
    parts = [DocumentVectors(tokens[batch.picked.of(packed)]) for packed in documents]
    scores = torch.zeros(batch.count, dtype=torch.float64)
    scores[documents] = torch.cat(list(_scores(query, parts, None)))
    return scores


def _scores(
    query: QueryVectors, documents: Sequence[DocumentVectors], dense_weight: float | None
) -> Iterator[Tensor]:
    for block in _blocks(documents):
        total = _token_scores(query, [document.tokens for document in block])
        if dense_weight is not None and query.pooled is not None:
            pooled = torch.stack([d.pooled for d in block if d.pooled is not None])
            total = total + dense_weight * (pooled @ query.pooled)
        yield total


def _token_scores(query: QueryVectors, documents: list[Tensor]) -> Tensor:
    if not len(query.tokens):
        return torch.zeros(len(documents), dtype=torch.float64, device=query.tokens.device)
    similarity = torch.cat(documents) @ query.tokens.T  # [document tokens, query tokens]
    lengths = [len(tokens) for tokens in documents]
    best = torch.stack([part.amax(0) for part in similarity.split(lengths)])  # [documents, query tokens]
    return _summed(query, best)


def _summed(query: QueryVectors, best: Tensor) -> Tensor:
    """Return [documents] fp64 from [documents, query tokens]."""
    # summed in double precision: a sum of 32 cosines in fp32 would round small differences between documents away
    weights = torch.ones_like(best[0]) if query.weights is None else query.weights
    return best.double() @ weights.double()


def _blocks(documents: Sequence[DocumentVectors]) -> Iterator[list[DocumentVectors]]:
    block: list[DocumentVectors] = []
    rows = 0
    for document in documents:
        if block and rows + len(document.tokens) > BLOCK_ROWS:
            yield block
            block, rows = [], 0
        block.append(document)
        rows += len(document.tokens)
    if block:
        yield block


class TokenProjection:
    """Hidden states → token vectors of length 1, in fp32."""

    def __init__(self, spec: Sequence[ProjectionSpec], weights: Sequence[Weights]) -> None:
        """Load the projections; `weights[i]` is the source of the i-th one."""
        self._steps = [_Projection(s, w) for s, w in zip(spec, weights, strict=True)]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return [rows, dim] fp32 from [rows, hidden]."""
        vectors = hidden.float()
        for step in self._steps:
            vectors = step(vectors)
        return unit(vectors)


class _Projection:
    def __init__(self, spec: ProjectionSpec, weights: Weights) -> None:
        sizes, kind = (spec.outputs, spec.inputs), torch.float32
        self._linear = Linear.load(weights, "linear", *sizes, kind, bias=spec.bias)
        self._activation, self._residual = ACTIVATIONS[spec.activation], spec.residual
        widens = spec.residual and spec.inputs != spec.outputs
        self._bridge = Linear.load(weights, "residual", *sizes, kind, bias=False) if widens else None

    def __call__(self, x: Tensor) -> Tensor:
        y = self._activation(self._linear(x))
        if not self._residual:
            return y
        return y + (self._bridge(x) if self._bridge else x)


def weighted_maxsim(query: QueryVectors, tokens: Tensor, batch: PackedBatch) -> Tensor:
    """Return Σᵢ wᵢ maxⱼ qᵢ·dⱼ of one query and every sequence of the batch, [sequences] fp32 in packed order.

    `tokens` is [rows, dim] fp32 of length 1. The caller ignores the scores of sequences that belong to other queries:
    computing them is cheaper than gathering the rows of one query.
    """
    assert query.weights is not None  # queries of the embedded model have weights
    if not len(query.weights):
        return torch.zeros(batch.count, dtype=torch.float32, device=tokens.device)
    similarity = tokens @ query.tokens.T  # [rows, query tokens]
    return largest(similarity, batch) @ query.weights
