"""Classifier heads: hidden states → logits, always in fp32."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import BackboneSpec


class Classifier(Protocol):
    """The head of a cross-encoder; `readout` names the hidden states it reads."""

    readout: Readout

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the read-out tokens, or [rows, hidden] of all."""
        ...


class DenseClassifier:
    """Dense → activation → one logit per label, in fp32."""

    readout: Readout = "first"

    def __init__(
        self, size: int, weights: Weights, dense: str, out: str, activation: str = "tanh", labels: int = 1
    ) -> None:
        self.dense = Linear.load(weights, dense, size, size, dtype=torch.float32)
        self.out = Linear.load(weights, out, labels, size, dtype=torch.float32)
        self.activation = activation

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the first tokens; [sequences, labels] of several."""
        return self.out(self.dense(hidden.float(), self.activation)).squeeze(1)


def bert_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load BERT's classifier; the dense layer is in the pooler."""
    return DenseClassifier(spec.hidden_size, weights, "bert.pooler.dense", "classifier", labels=labels)


def roberta_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load the classifier of RoBERTa and MPNet; the dense layer is in the classification head."""
    return DenseClassifier(
        spec.hidden_size, weights, "classifier.dense", "classifier.out_proj", labels=labels
    )


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors to length 1 along the last dimension; a zero vector stays zero."""
    return F.normalize(vectors, dim=-1)
