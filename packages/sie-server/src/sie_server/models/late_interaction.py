"""Late interaction: a query's token vectors against the token vectors of many documents.

MaxSim is the operator of ColBERT (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832): every query token
takes its best match among the document's tokens. Here the query tokens are weighted, and the cosine of the pooled
vectors is added with a fixed weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sie_server.models.packed import PackedBatch


@dataclass(frozen=True)
class QueryVectors:
    """A query as the scorer needs it; vectors have length 1, weights sum to 1 (or to 0: nothing to match)."""

    tokens: Tensor  # [query tokens, dim] fp32
    weights: Tensor  # [query tokens] fp32
    pooled: Tensor  # [dim] fp32

    @classmethod
    def build(cls, tokens: Tensor, weights: Tensor, pooled: Tensor) -> QueryVectors:
        """Keep the tokens that carry weight, and divide the weights by their sum."""
        kept = weights > 0
        total = weights.sum()
        return cls(tokens[kept], weights[kept] / total if total > 0 else weights[kept], pooled)


def weighted_maxsim(query: QueryVectors, tokens: Tensor, batch: PackedBatch) -> Tensor:
    """Σᵢ wᵢ maxⱼ qᵢ·dⱼ of one query against every sequence of the batch.

    `tokens` is [rows, dim] fp32 of length 1. Returns [sequences] fp32 in packed order; rows of sequences that belong to
    other queries are computed and left to the caller to ignore, which is cheaper than gathering.
    """
    if not len(query.weights):
        return torch.zeros(batch.count, dtype=torch.float32, device=tokens.device)
    similarity = tokens @ query.tokens.T  # [rows, query tokens]
    best = torch.empty(batch.count, len(query.weights), dtype=torch.float32, device=tokens.device)
    for group in batch.groups:
        block = similarity[group.rows].unflatten(0, (group.count, group.slot))
        if group.valid is not None:
            block = block.masked_fill(~group.valid[:, :, None], float("-inf"))
        best[group.sequences] = block.amax(1)
    return best @ query.weights
