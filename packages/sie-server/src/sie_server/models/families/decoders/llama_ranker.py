"""NVIDIA's rerankers on Llama decoders: every token attends to the whole prompt, and a classifier reads the mean.

The code in the repositories is never run. The same computation is in NVIDIA-NeMo/Automodel
(nemo_automodel/components/models/llama_bidirectional/model.py) and in vLLM (llama.py, nemotron_vl.py). Prompts are
templates, as for causal rerankers. Since no token can be computed before the whole prompt is known, the prompts of a
request share no prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.families.decoders.decoder import DecoderSpec, read_llama
from sie_server.models.heads.classifier import Classifier
from sie_server.models.heads.pooling import pooled_states, pooling_readout
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import BackboneSpec, Pooling, UnsupportedCheckpoint

POOLINGS: dict[str, Pooling] = {"avg": "mean", "cls": "cls", "last": "last"}


@dataclass(frozen=True, kw_only=True)
class LlamaRankerSpec(DecoderSpec):
    """A Llama with bidirectional attention and the settings of its classifier."""

    pooling: Pooling
    temperature: float  # the logit is divided by it


def read_llama_bidirectional(config: dict[str, Any]) -> LlamaRankerSpec:
    """Read Llama's fields, `pooling` (default avg) and `temperature` (default 1)."""
    return _read(config, config.get("pooling", "avg"), config)


def read_llama_nemotron_vl(config: dict[str, Any]) -> LlamaRankerSpec:
    """Read Llama's fields under `llm_config`, and those of the classifier at the top level.

    The defaults are those of configuration_llama_nemotron_vl.py in the repository.
    """
    return _read(config["llm_config"], config.get("pooling", "last"), config)


def _read(llama: dict[str, Any], pooling: str, head: dict[str, Any]) -> LlamaRankerSpec:
    temperature = float(head.get("temperature", 1.0))
    if pooling not in POOLINGS:
        raise UnsupportedCheckpoint(f"pooling {pooling!r} is not supported; supported: {', '.join(POOLINGS)}")
    if not temperature > 0:
        raise UnsupportedCheckpoint(
            f"temperature is {temperature}; it divides the logit, so it must be above 0"
        )
    backbone = vars(read_llama(llama)) | {"causal": False}
    return LlamaRankerSpec(**backbone, pooling=POOLINGS[pooling], temperature=temperature)


class PooledClassifier:
    """Pooling → one logit, in fp32."""

    def __init__(self, spec: LlamaRankerSpec, weights: Weights) -> None:
        self._pooling, self._temperature = (spec.pooling,), spec.temperature
        self.readout: Readout = pooling_readout(self._pooling)
        self._out = Linear.load(weights, "score", 1, spec.hidden_size, torch.float32, bias=False)

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from the hidden states of `readout`."""
        return self._out(pooled_states(hidden, batch, self._pooling)).squeeze(1) / self._temperature


def llama_classifier(spec: BackboneSpec, weights: Weights) -> Classifier:
    """Load the head `score`."""
    assert isinstance(spec, LlamaRankerSpec)
    return PooledClassifier(spec, weights)
