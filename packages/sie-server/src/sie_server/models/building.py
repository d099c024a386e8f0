"""Spec and weights → the parts of a model: backbone and head, by the tables in `models.registry`."""

from __future__ import annotations

from sie_server.models.families.decoders.decoder import DecoderSpec, TokenLogits
from sie_server.models.families.decoders.layerwise import LayerHeads
from sie_server.models.heads.classifier import Classifier
from sie_server.models.heads.labels import LabelledClassifier
from sie_server.models.heads.modular import ModularClassifier
from sie_server.models.layers.linear import Weights
from sie_server.models.registry import Backbone, family_of
from sie_server.models.spec import ClassifierSpec, LayerwiseSpec, ModelSpec, UnsupportedCheckpoint


def check_format(spec: ModelSpec) -> None:
    """Check that the family has the int8 format.

    Raises:
        UnsupportedCheckpoint: it has not.
    """
    if spec.backbone.products is not None:
        return
    kind = "runs through transformers" if spec.compat else "is a decoder or a hybrid"
    raise UnsupportedCheckpoint(
        f"dtype 'int8' is supported for encoders of the families of BERT and ModernBERT; {spec.architecture} {kind}. "
        "Use --dtype auto for this model"
    )


def build_backbone(spec: ModelSpec, weights: Weights) -> Backbone:
    """Build the backbone of a checkpoint and load its weights."""
    family = family_of(spec.architecture)
    for names in family.unserved:
        weights.leave(names)
    if family.inner:
        return family.build(spec.backbone, weights.inside(family.inner))
    return family.build(spec.backbone, weights.at(family.prefix) if family.prefix else weights)


def build_classifier(spec: ModelSpec, weights: Weights) -> Classifier:
    """Load the head of a cross-encoder."""
    if isinstance(spec.head, ClassifierSpec) and spec.head.modules:
        return ModularClassifier(spec.head, weights)
    build = family_of(spec.architecture).classifier
    assert build is not None and isinstance(spec.head, ClassifierSpec)  # the spec was read as a classifier
    if spec.head.labels.count == 1:
        return build(spec.backbone, weights)
    return LabelledClassifier(build(spec.backbone, weights, spec.head.labels.count), spec.head.labels)


def build_token_logits(spec: ModelSpec, weights: Weights, tokens: list[int]) -> Classifier:
    """Load the head of a causal reranker: the rows of `tokens` in the output matrix."""
    assert isinstance(spec.backbone, DecoderSpec)  # the spec was read as a decoder
    words = f"{family_of(spec.architecture).prefix}.embed_tokens.weight"
    return TokenLogits(spec.backbone, weights, tokens, words)


def build_layer_heads(spec: ModelSpec, weights: Weights) -> Classifier:
    """Load the heads of a layerwise reranker."""
    assert isinstance(spec.backbone, DecoderSpec) and isinstance(spec.head, LayerwiseSpec)
    return LayerHeads(spec.head, spec.backbone, weights)
