"""Architecture → class: the one place that knows which encoder and which head a checkpoint is made of."""

from __future__ import annotations

from sie_server.models.bert import BertEncoder
from sie_server.models.heads import ClassifierHead
from sie_server.models.layers import Weights
from sie_server.models.spec import ClassifierSpec, ModelSpec

# where the encoder's tensors stand in a checkpoint; bare encoders have no prefix
PREFIXES = {
    "BertForSequenceClassification": "bert",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForSequenceClassification": "roberta",
}


def build_encoder(spec: ModelSpec, weights: Weights) -> BertEncoder:
    """The forward pass of the checkpoint's family, filled with its weights."""
    prefix = PREFIXES.get(spec.architecture)
    return BertEncoder(spec.encoder, weights.at(prefix) if prefix else weights)


def build_classifier(spec: ModelSpec, weights: Weights) -> ClassifierHead | None:
    """The head of a cross-encoder, or None for a checkpoint that gives vectors."""
    if isinstance(spec.head, ClassifierSpec):
        return ClassifierHead(spec.head, spec.encoder.hidden_size, weights)
    return None
