"""Architecture → family: the reader, the backbone and the head of each supported architecture.

Any other architecture is refused with the list of those below; no class is guessed from a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.families.decoders.decoder import (
    Decoder,
    read_gemma,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
)
from sie_server.models.families.decoders.gemma2 import Gemma2Decoder, read_gemma2
from sie_server.models.families.decoders.layerwise import (
    MiniCPMDecoder,
    read_cost_wise_gemma,
    read_minicpm,
)
from sie_server.models.families.decoders.lfm2 import Lfm2Encoder, read_lfm2
from sie_server.models.families.decoders.listwise import read_jina_ranking
from sie_server.models.families.decoders.llama_ranker import (
    llama_classifier,
    read_llama_bidirectional,
    read_llama_nemotron_vl,
)
from sie_server.models.families.decoders.score_head import score_head
from sie_server.models.families.decoders.vision_language import (
    jina_m0_classifier,
    read_qwen2_vl,
    read_qwen3_vl,
)
from sie_server.models.families.encoders import compat
from sie_server.models.families.encoders.bert import BertEncoder, read_bert, read_roberta
from sie_server.models.families.encoders.bert_relatives import (
    new_classifier,
    read_jina_bert,
    read_new,
    read_xlm_roberta_flash,
)
from sie_server.models.families.encoders.bert_siblings import (
    albert_classifier,
    distilbert_classifier,
    electra_classifier,
    read_albert,
    read_distilbert,
    read_electra,
    read_mpnet,
)
from sie_server.models.families.encoders.modernbert import (
    ModernBertEncoder,
    modernbert_classifier,
    read_modernbert,
)
from sie_server.models.heads.classifier import Classifier, bert_classifier, roberta_classifier
from sie_server.models.layers.linear import Weights
from sie_server.models.settings.purposes import purpose
from sie_server.models.spec import (
    BackboneSpec,
    UnsupportedCheckpoint,
)


class Backbone(Protocol):
    """The forward pass of a family."""

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return the last hidden states: [rows, hidden], or [sequences, hidden] of the read-out tokens."""
        ...


@dataclass(frozen=True)
class Family:
    """The functions that read and build one architecture."""

    read: Callable[[dict[str, Any]], BackboneSpec]
    build: Callable[[Any, Weights], Backbone]  # takes the spec that `read` returns
    prefix: str | None = None  # of the names of the backbone's tensors in the checkpoint
    # takes the spec that `read` returns, the weights, and the number of labels where there are several
    classifier: Callable[..., Classifier] | None = None
    # the same prefix, where the tensors of a bare model were saved from a class with a head
    inner: str | None = None
    listwise: bool = False  # a decoder that reads several documents in one prompt
    # the architecture of repositories that name this one but have no modules.json
    without_modules: str | None = None
    prompted: bool = False  # as a reranker it reads a filled template
    unserved: tuple[str, ...] = ()  # name prefixes of tensors in the checkpoint that are known and not loaded


# jina-reranker-v1 names an encoder's class but contains a classifier's weights
JINA_EMBEDDER = Family(
    read_jina_bert, BertEncoder, inner="bert", without_modules="JinaBertForSequenceClassification"
)

# fmt: off
CROSS_ENCODERS = {
    "AlbertForSequenceClassification": Family(read_albert, BertEncoder, "albert", albert_classifier),
    "BertForSequenceClassification": Family(read_bert, BertEncoder, "bert", bert_classifier),
    "CamembertForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "DistilBertForSequenceClassification":
        Family(read_distilbert, BertEncoder, "distilbert", distilbert_classifier),
    "ElectraForSequenceClassification": Family(read_electra, BertEncoder, "electra", electra_classifier),
    "JinaBertForSequenceClassification": Family(read_jina_bert, BertEncoder, "bert", bert_classifier),
    "MPNetForSequenceClassification": Family(read_mpnet, BertEncoder, "mpnet", roberta_classifier),
    "ModernBertForSequenceClassification":
        Family(read_modernbert, ModernBertEncoder, "model", modernbert_classifier),
    "NewForSequenceClassification": Family(read_new, BertEncoder, "new", new_classifier),  # mGTE
    "RobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "XLMRobertaForSequenceClassification": Family(read_roberta, BertEncoder, "roberta", roberta_classifier),
    "XLMRobertaForSequenceClassification (XLMRobertaFlashConfig)":  # jina-reranker-v2
        Family(read_xlm_roberta_flash, BertEncoder, "roberta", roberta_classifier),
}
# dense, sparse or token vectors, depending on the other files of the repository
ENCODERS = {
    "AlbertModel": Family(read_albert, BertEncoder, inner="albert"),
    "BertModel": Family(read_bert, BertEncoder, inner="bert"),
    "CamembertModel": Family(read_roberta, BertEncoder, inner="roberta"),
    "DistilBertModel": Family(read_distilbert, BertEncoder, inner="distilbert"),
    "ElectraModel": Family(read_electra, BertEncoder, inner="electra"),
    "JinaBertForMaskedLM": JINA_EMBEDDER,
    "JinaBertModel": JINA_EMBEDDER,
    "Lfm2Model": Family(read_lfm2, Lfm2Encoder, inner="model"),
    "MPNetModel": Family(read_mpnet, BertEncoder, inner="mpnet"),
    "ModernBertModel": Family(read_modernbert, ModernBertEncoder, inner="model"),
    "NewForTokenClassification": Family(read_new, BertEncoder, inner="new"),  # gte-multilingual-base
    "NewModel": Family(read_new, BertEncoder, inner="new"),
    "RobertaModel": Family(read_roberta, BertEncoder, inner="roberta"),
    "XLMRobertaModel": Family(read_roberta, BertEncoder, inner="roberta"),
}
# SPLADE
MASKED = {
    "BertForMaskedLM": Family(read_bert, BertEncoder, "bert"),
    "CamembertForMaskedLM": Family(read_roberta, BertEncoder, "roberta"),
    "DistilBertForMaskedLM": Family(read_distilbert, BertEncoder, "distilbert"),
    "MPNetForMaskedLM": Family(read_mpnet, BertEncoder, "mpnet"),
    "ModernBertForMaskedLM": Family(read_modernbert, ModernBertEncoder, "model"),
    "RobertaForMaskedLM": Family(read_roberta, BertEncoder, "roberta"),
    "XLMRobertaForMaskedLM": Family(read_roberta, BertEncoder, "roberta"),
}
# Stanford's checkpoints all have the architecture HF_ColBERT; the suffix is their model_type
COLBERT = {
    "HF_ColBERT/bert": Family(read_bert, BertEncoder, "bert"),
    "HF_ColBERT/roberta": Family(read_roberta, BertEncoder, "roberta"),
    "HF_ColBERT/xlm-roberta": Family(read_roberta, BertEncoder, "roberta"),
    "HF_ColBERT/xlm-roberta (XLMRobertaFlashConfig)":  # jina-colbert-v2
        Family(read_xlm_roberta_flash, BertEncoder, "roberta"),
}
# decoders that read a filled template and score by a token's logit or their own head; embedding models where
# modules.json says so
PROMPTED = {
    "CostWiseGemmaForCausalLM": Family(read_cost_wise_gemma, Gemma2Decoder, "model", prompted=True),
    "Gemma2ForCausalLM": Family(read_gemma2, Gemma2Decoder, "model", prompted=True),
    "GemmaForCausalLM": Family(read_gemma, Decoder, "model", prompted=True),
    "LayerWiseMiniCPMForCausalLM": Family(read_minicpm, MiniCPMDecoder, "model", prompted=True),
    "LlamaBidirectionalForSequenceClassification":
        Family(read_llama_bidirectional, Decoder, "model", llama_classifier, prompted=True),
    "LlamaForCausalLM": Family(read_llama, Decoder, "model", prompted=True),
    "MistralForCausalLM": Family(read_mistral, Decoder, "model", prompted=True),
    "Qwen2ForCausalLM": Family(read_qwen2, Decoder, "model", prompted=True),
    "Qwen3ForCausalLM": Family(read_qwen3, Decoder, "model", prompted=True),
}
# the same decoders saved as classifiers
SCORE_HEADS = {
    "Gemma2ForSequenceClassification":
        Family(read_gemma2, Gemma2Decoder, "model", score_head, prompted=True),
    "GemmaForSequenceClassification": Family(read_gemma, Decoder, "model", score_head, prompted=True),
    "LlamaForSequenceClassification": Family(read_llama, Decoder, "model", score_head, prompted=True),
    "MistralForSequenceClassification": Family(read_mistral, Decoder, "model", score_head, prompted=True),
    "Qwen2ForSequenceClassification": Family(read_qwen2, Decoder, "model", score_head, prompted=True),
    "Qwen3ForSequenceClassification": Family(read_qwen3, Decoder, "model", score_head, prompted=True),
}
# vision-language models, for text only
VISION_LANGUAGE = {
    "JinaVLForRanking": Family(
        read_qwen2_vl, Decoder, "model", jina_m0_classifier, prompted=True,
        unserved=("visual.", "lm_head."),  # the repository's code removes the output matrix
    ),
    "LlamaNemotronVLForSequenceClassification": Family(
        read_llama_nemotron_vl, Decoder, "model.language_model", llama_classifier, prompted=True,
        unserved=("model.vision_model.", "model.mlp1."),
    ),
    "Qwen3VLForConditionalGeneration": Family(
        read_qwen3_vl, Decoder, "model.language_model", prompted=True,
        unserved=("model.visual.",),
    ),
}
# decoders that read several documents in one prompt
LISTWISE = {
    "JinaForRanking": Family(read_jina_ranking, Decoder, "model", listwise=True),
}
# decoders as embedding models
DECODER_EMBEDDERS = {
    "Gemma2Model": Family(read_gemma2, Gemma2Decoder, inner="model"),
    "GemmaModel": Family(read_gemma, Decoder, inner="model"),
    "LlamaModel": Family(read_llama, Decoder, inner="model"),
    "MistralModel": Family(read_mistral, Decoder, inner="model"),
    "Qwen2Model": Family(read_qwen2, Decoder, inner="model"),
    "Qwen3Model": Family(read_qwen3, Decoder, inner="model"),
}
# fmt: on
# model_type → the class of the model without a head, as `AutoModel` of transformers picks it
BARE = {
    "albert": "AlbertModel",
    "bert": "BertModel",
    "camembert": "CamembertModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
    "lfm2": "Lfm2Model",
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
}
ARCHITECTURES: dict[str, Family] = (
    CROSS_ENCODERS
    | ENCODERS
    | MASKED
    | COLBERT
    | PROMPTED
    | SCORE_HEADS
    | VISION_LANGUAGE
    | LISTWISE
    | DECODER_EMBEDDERS
)
COMPAT = Family(compat.read, compat.CompatModel, classifier=compat.classifier)
COMPAT_DECODER = replace(COMPAT, prompted=True)
# the names of its weights are known to the library only
COMPAT_ENCODER = Family(compat.read_encoder, compat.CompatEncoder)


def family_of(architecture: str) -> Family:
    """Return the family of an architecture; one of the three above for those that only transformers implements.

    Raises:
        UnsupportedCheckpoint: neither this version nor transformers supports the architecture.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    if compat.serves_encoder(architecture):
        return COMPAT_ENCODER
    if compat.serves(architecture):
        return COMPAT_DECODER if compat.is_decoder(architecture) else COMPAT
    raise UnsupportedCheckpoint(
        f"config.json names the architecture {architecture!r}, which this version does not support."
        f"{purpose(architecture)} Supported architectures: {known_architectures()}{compat.hint(architecture)}"
    )


def bare_architecture(model_type: str) -> str | None:
    """Return the class without a head of a model type, as `AutoModel` picks it; None for an unknown type."""
    return BARE.get(model_type) or compat.bare_architecture(model_type)


def architecture_with(head: str, model_type: str) -> str | None:
    """Return the class of a model type with a head, such as `ForMaskedLM`; None where it is not served."""
    name = BARE.get(model_type, "").removesuffix("Model") + head
    return name if name in ARCHITECTURES else None


def known_architectures() -> str:
    """Return the names of all architectures, for messages."""
    return ", ".join(sorted(ARCHITECTURES))
