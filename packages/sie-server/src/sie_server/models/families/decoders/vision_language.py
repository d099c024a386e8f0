"""Rerankers on vision-language models, for text only: the vision tensors are known and not loaded.

Rotary positions have three coordinates (time, height, width), which are equal for text. Text is therefore rotated as in
the language model alone, and `mrope_section` has no effect. The API refuses images instead of ignoring them.
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
    """Read a Qwen3-VL configuration: a Qwen3 under `text_config`, with `tie_word_embeddings` next to it."""
    text = config["text_config"]
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return read_qwen3(_plain_positions(text) | {"tie_word_embeddings": tied})


def read_qwen2_vl(config: dict[str, Any]) -> DecoderSpec:
    """Read a Qwen2-VL configuration: a Qwen2 under `text_config`, or at the top level before transformers 4.52."""
    return read_qwen2(_plain_positions(config.get("text_config") or config))


def _plain_positions(text: dict[str, Any]) -> dict[str, Any]:
    """Replace `mrope`, Qwen2-VL's positions with three coordinates, by the default, which is the same for text."""
    key = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    given = dict(text.get(key) or {})
    for name in ("type", "rope_type"):
        if given.get(name) == "mrope":
            given[name] = "default"
    return text | {key: given}


class LastTokenClassifier:
    """Dense → ReLU → one logit of the last token's state, minus a constant, in fp32."""

    readout: Readout = "last"

    def __init__(self, size: int, weights: Weights, bias: float) -> None:
        self._dense = Linear.load(weights, "score.0", size, size, dtype=torch.float32)
        self._out = Linear.load(weights, "score.2", 1, size, dtype=torch.float32)
        self._bias = bias

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the last tokens."""
        return self._out(F.relu(self._dense(hidden.float()))).squeeze(1) - self._bias


def jina_m0_classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """Load the head `score` of jina-reranker-m0."""
    return LastTokenClassifier(spec.hidden_size, weights, JINA_M0_BIAS)
