"""Rerankers on vision-language models, served for text: the language model's tensors are taken, the rest is named.

Their rotary positions have three coordinates (time, height, width), which are equal for text; so text turns as in the
language model alone, and `mrope_section` says nothing here. Images are refused by the API, never dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.families.decoders.decoder import DecoderSpec, read_qwen2, read_qwen3
from sie_server.models.heads.classifier import Classifier
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import BackboneSpec

JINA_M0_BIAS = 2.65  # LOGIT_BIAS in modeling.py of jinaai/jina-reranker-m0 and in vLLM's jina_vl.py


def read_qwen3_vl(config: dict[str, Any]) -> DecoderSpec:
    """Qwen3-VL: a Qwen3 under `text_config`; whether the output matrix is tied stands beside it."""
    text = config["text_config"]
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return read_qwen3(_plain_positions(text) | {"tie_word_embeddings": tied})


def read_qwen2_vl(config: dict[str, Any]) -> DecoderSpec:
    """Qwen2-VL: a Qwen2 under `text_config`, or at the top in files older than transformers 4.52."""
    return read_qwen2(_plain_positions(config.get("text_config") or config))


def _plain_positions(text: dict[str, Any]) -> dict[str, Any]:
    """`mrope` is what Qwen2-VL calls the default with three equal coordinates."""
    key = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    given = dict(text.get(key) or {})
    for name in ("type", "rope_type"):
        if given.get(name) == "mrope":
            given[name] = "default"
    return text | {key: given}


class LastTokenClassifier:
    """Dense → ReLU → one logit, of the last token's state, in fp32; jina-reranker-m0 subtracts a constant."""

    readout: Readout = "last"

    def __init__(self, size: int, weights: Weights, bias: float) -> None:
        self._dense = Linear.load(weights, "score.0", size, size, dtype=torch.float32)
        self._out = Linear.load(weights, "score.2", 1, size, dtype=torch.float32)
        self._bias = bias

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """[sequences, hidden] of the last tokens → [sequences] fp32."""
        return self._out(F.relu(self._dense(hidden.float()))).squeeze(1) - self._bias


def jina_m0_classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """The head `score` of jina-reranker-m0."""
    return LastTokenClassifier(spec.hidden_size, weights, JINA_M0_BIAS)
