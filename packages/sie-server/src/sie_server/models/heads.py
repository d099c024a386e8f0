"""Read-out: hidden states → logits or vectors, always in fp32 whatever the encoder computes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers import Linear, Weights
from sie_server.models.packed import PackedBatch
from sie_server.models.spec import ClassifierSpec, Pooling


class ClassifierHead:
    """First token → dense → tanh → one logit."""

    def __init__(self, spec: ClassifierSpec, size: int, weights: Weights) -> None:
        # BERT keeps the dense layer in its pooler, RoBERTa in the classification head
        dense, out = {
            "bert": ("bert.pooler.dense", "classifier"),
            "roberta": ("classifier.dense", "classifier.out_proj"),
        }[spec.layout]
        self.dense = Linear.load(weights, dense, size, size, dtype=torch.float32)
        self.out = Linear.load(weights, out, 1, size, dtype=torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """[sequences, hidden] of the first tokens → [sequences] fp32."""
        return self.out(torch.tanh(self.dense(hidden.float()))).squeeze(1)


def pool(hidden: Tensor, batch: PackedBatch, how: Pooling) -> Tensor:
    """One vector per packed sequence: [rows, hidden] → [sequences, hidden] fp32."""
    if how == "cls":
        return hidden[batch.first_rows].float()
    pooled = torch.empty(batch.count, hidden.shape[1], dtype=torch.float32, device=hidden.device)
    for group in batch.groups:
        block = hidden[group.rows].unflatten(0, (group.count, group.slot)).float()
        if group.valid is None:
            pooled[group.sequences] = block.mean(1)
        else:
            total = (block * group.valid[:, :, None]).sum(1)
            pooled[group.sequences] = total / group.valid.sum(1, keepdim=True)
    return pooled


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; a zero vector stays zero."""
    return F.normalize(vectors, dim=-1)
