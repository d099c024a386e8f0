"""Architecture → family: the one place that knows which parts a checkpoint is made of.

An architecture that is not here is refused with the list of those that are; no class is guessed from a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sie_server.models.bert import BertEncoder, read_bert, read_roberta
from sie_server.models.heads import Classifier, bert_classifier, roberta_classifier
from sie_server.models.layers import Weights
from sie_server.models.packed import PackedBatch, Readout
from sie_server.models.spec import BackboneSpec, ModelSpec


class Backbone(Protocol):
    """A family's forward pass."""

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Last hidden states: [rows, hidden], or [sequences, hidden] of the read-out tokens."""
        ...


@dataclass(frozen=True)
class Family:
    """How to read, build and read out one architecture."""

    read: Callable[[dict[str, Any]], BackboneSpec]
    build: Callable[[Any, Weights], Backbone]  # its own BackboneSpec, weights
    prefix: str | None = None  # where the backbone's tensors stand in the checkpoint
    classifier: Callable[[int, Weights], Classifier] | None = None  # hidden size, weights


ARCHITECTURES = {
    "BertForSequenceClassification": Family(read_bert, BertEncoder, "bert", bert_classifier),
    "BertForMaskedLM": Family(read_bert, BertEncoder, "bert"),  # SPLADE
    "BertModel": Family(read_bert, BertEncoder),
    "RobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "RobertaModel": Family(read_roberta, BertEncoder),
    "XLMRobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "XLMRobertaModel": Family(read_roberta, BertEncoder),
}


def known_architectures() -> str:
    """For messages."""
    return ", ".join(sorted(ARCHITECTURES))


def build_backbone(spec: ModelSpec, weights: Weights) -> Backbone:
    """The forward pass of the checkpoint's family, filled with its weights."""
    family = ARCHITECTURES[spec.architecture]
    return family.build(spec.backbone, weights.at(family.prefix) if family.prefix else weights)


def build_classifier(spec: ModelSpec, weights: Weights) -> Classifier:
    """The head of a cross-encoder."""
    build = ARCHITECTURES[spec.architecture].classifier
    assert build is not None  # the spec was read as a classifier
    return build(spec.backbone.hidden_size, weights)
