"""Classifier heads and pooling: hidden states → logits or vectors, always in fp32."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import BackboneSpec, Pooling


class Classifier(Protocol):
    """The head of a cross-encoder; `readout` names the hidden states it reads."""

    readout: Readout

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the read-out tokens, or [rows, hidden] of all."""
        ...


class TanhClassifier:
    """Dense → tanh → one logit, in fp32."""

    readout: Readout = "first"

    def __init__(self, size: int, weights: Weights, dense: str, out: str) -> None:
        self.dense = Linear.load(weights, dense, size, size, dtype=torch.float32)
        self.out = Linear.load(weights, out, 1, size, dtype=torch.float32)

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the first tokens."""
        return self.out(torch.tanh(self.dense(hidden.float()))).squeeze(1)


def bert_classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """Load BERT's classifier; the dense layer is in the pooler."""
    return TanhClassifier(spec.hidden_size, weights, "bert.pooler.dense", "classifier")


def roberta_classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """Load RoBERTa's classifier; the dense layer is in the classification head."""
    return TanhClassifier(spec.hidden_size, weights, "classifier.dense", "classifier.out_proj")


def pooling_readout(how: Pooling) -> Readout:
    """Return the hidden states that `pooled_states` needs; for one token the last layer computes only its row."""
    readouts: dict[Pooling, Readout] = {"cls": "first", "last": "last", "mean": "all"}
    return readouts[how]


def pooled_states(hidden: Tensor, batch: PackedBatch, how: Pooling) -> Tensor:
    """Pool the states that `pooling_readout` names: one vector per packed sequence, [sequences, hidden] fp32."""
    return pool(hidden, batch, how) if how == "mean" else hidden.float()


def pool(hidden: Tensor, batch: PackedBatch, how: Pooling) -> Tensor:
    """Pool all states: one vector per packed sequence, [rows, hidden] → [sequences, hidden] fp32."""
    if (rows := batch.rows_of(pooling_readout(how))) is not None:
        return hidden[rows].float()
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
    """Scale vectors to length 1 along the last dimension; a zero vector stays zero."""
    return F.normalize(vectors, dim=-1)
