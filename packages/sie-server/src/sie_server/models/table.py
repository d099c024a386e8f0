"""Architecture → family: the one place that knows which parts a checkpoint is made of.

An architecture that is not here is refused with the list of those that are; no class is guessed from a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sie_server.models import compat
from sie_server.models.bert import BertEncoder, read_bert, read_roberta
from sie_server.models.bert_relatives import new_classifier, read_new, read_xlm_roberta_flash
from sie_server.models.decoder import (
    Decoder,
    DecoderSpec,
    TokenLogits,
    read_gemma,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
)
from sie_server.models.gemma2 import Gemma2Decoder, read_gemma2
from sie_server.models.heads import Classifier, bert_classifier, roberta_classifier
from sie_server.models.layers import Weights
from sie_server.models.layerwise import LayerHeads, MiniCPMDecoder, read_cost_wise_gemma, read_minicpm
from sie_server.models.modernbert import ModernBertEncoder, modernbert_classifier, read_modernbert
from sie_server.models.modules import ModularClassifier
from sie_server.models.packed import PackedBatch, Readout
from sie_server.models.spec import (
    BackboneSpec,
    ClassifierSpec,
    LayerwiseSpec,
    ModelSpec,
    UnsupportedCheckpoint,
)


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
    classifier: Callable[[Any, Weights], Classifier] | None = None  # its own BackboneSpec, weights
    causal: bool = False  # a decoder, read out at the last token of a filled template


ARCHITECTURES = {
    "BertForSequenceClassification": Family(read_bert, BertEncoder, "bert", bert_classifier),
    "BertForMaskedLM": Family(read_bert, BertEncoder, "bert"),  # SPLADE
    "BertModel": Family(read_bert, BertEncoder),
    "ModernBertForSequenceClassification": Family(
        read_modernbert, ModernBertEncoder, "model", modernbert_classifier
    ),
    "ModernBertModel": Family(read_modernbert, ModernBertEncoder),
    "NewForSequenceClassification": Family(read_new, BertEncoder, "new", new_classifier),
    "GemmaForCausalLM": Family(read_gemma, Decoder, "model", causal=True),
    "Gemma2ForCausalLM": Family(read_gemma2, Gemma2Decoder, "model", causal=True),
    "CostWiseGemmaForCausalLM": Family(read_cost_wise_gemma, Gemma2Decoder, "model", causal=True),
    "LayerWiseMiniCPMForCausalLM": Family(read_minicpm, MiniCPMDecoder, "model", causal=True),
    "LlamaForCausalLM": Family(read_llama, Decoder, "model", causal=True),
    "MistralForCausalLM": Family(read_mistral, Decoder, "model", causal=True),
    "Qwen2ForCausalLM": Family(read_qwen2, Decoder, "model", causal=True),
    "Qwen3ForCausalLM": Family(read_qwen3, Decoder, "model", causal=True),
    "RobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "RobertaModel": Family(read_roberta, BertEncoder),
    "XLMRobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "XLMRobertaForSequenceClassification (XLMRobertaFlashConfig)": Family(
        read_xlm_roberta_flash, BertEncoder, "roberta", roberta_classifier
    ),
    "XLMRobertaModel": Family(read_roberta, BertEncoder),
    # Stanford's ColBERT checkpoints all name the architecture HF_ColBERT; what follows is their model_type
    "HF_ColBERT/bert": Family(read_bert, BertEncoder, "bert"),
    "HF_ColBERT/roberta": Family(read_roberta, BertEncoder, "roberta"),
    "HF_ColBERT/xlm-roberta": Family(read_roberta, BertEncoder, "roberta"),
}


COMPAT = Family(compat.read, compat.CompatModel, None, compat.classifier)


def family_of(architecture: str) -> Family:
    """The parts of an architecture; one that is not ours but that transformers classifies with runs as `COMPAT`.

    Raises:
        UnsupportedCheckpoint: nobody serves it.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    if compat.serves(architecture):
        return COMPAT
    raise UnsupportedCheckpoint(
        f"config.json names the architecture {architecture!r}, which this version does not serve. "
        f"Served architectures: {known_architectures()}{compat.hint(architecture)}"
    )


def known_architectures() -> str:
    """For messages."""
    return ", ".join(sorted(ARCHITECTURES))


def build_backbone(spec: ModelSpec, weights: Weights) -> Backbone:
    """The forward pass of the checkpoint's family, filled with its weights."""
    family = family_of(spec.architecture)
    return family.build(spec.backbone, weights.at(family.prefix) if family.prefix else weights)


def build_classifier(spec: ModelSpec, weights: Weights) -> Classifier:
    """The head of a cross-encoder."""
    if isinstance(spec.head, ClassifierSpec) and spec.head.modules:
        return ModularClassifier(spec.head, weights)
    build = family_of(spec.architecture).classifier
    assert build is not None  # the spec was read as a classifier
    return build(spec.backbone, weights)


def build_token_logits(spec: ModelSpec, weights: Weights, tokens: list[int]) -> Classifier:
    """The head of a causal reranker: the output matrix' rows of `tokens`."""
    assert isinstance(spec.backbone, DecoderSpec)  # the spec was read as a decoder
    return TokenLogits(spec.backbone, weights, tokens)


def build_layer_heads(spec: ModelSpec, weights: Weights) -> Classifier:
    """The heads of a causal reranker that can stop early."""
    assert isinstance(spec.backbone, DecoderSpec) and isinstance(spec.head, LayerwiseSpec)
    return LayerHeads(spec.head, spec.backbone, weights)
