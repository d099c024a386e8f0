"""Rerankers that can stop after an early layer: MiniCPM and Gemma 2 decoders with a head after each of many layers.

bge-reranker-v2-minicpm-layerwise and bge-reranker-v2.5-gemma2-lightweight. The score is read from the last token's
hidden state after the chosen layer, by the final norm and one row of weights; higher layers are not computed. The
source is FlagEmbedding 1.4.2 (inference/reranker/decoder_only/models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.families.decoders.decoder import Decoder, DecoderLayer, DecoderSpec, read_llama
from sie_server.models.families.decoders.gemma2 import Gemma2Spec, read_gemma2
from sie_server.models.layers.linear import Residual, Weights, capped
from sie_server.models.spec import LayerwiseSpec, UnsupportedCheckpoint


@dataclass(frozen=True, kw_only=True)
class MiniCPMSpec(DecoderSpec):
    """A Llama whose residual branches are scaled down by the square root of the depth."""

    residual_scale: float
    cutoff_layers: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CostWiseGemmaSpec(Gemma2Spec):
    """Gemma 2 with heads in place of the output matrix."""

    cutoff_layers: tuple[int, ...]
    heads: tuple[int, ...]


def read_minicpm(config: dict[str, Any]) -> MiniCPMSpec:
    """Read the configuration of LayerWiseMiniCPMForCausalLM.

    Raises:
        UnsupportedCheckpoint: the heads are not one row per layer.
    """
    required = {"head_multi": True, "head_type": "simple"}
    if wrong := {name: config.get(name) for name in required if config.get(name) != required[name]}:
        raise UnsupportedCheckpoint(f"{wrong} is not supported for this architecture; expected {required}")
    llama = read_llama(config)
    layers = tuple(range(config["start_layer"], llama.num_layers + 1))
    return MiniCPMSpec(
        **vars(llama) | {"embedding_scale": float(config["scale_emb"])},
        residual_scale=config["scale_depth"] / llama.num_layers**0.5,
        cutoff_layers=layers,
        heads=tuple(range(len(layers))),
    )


def read_cost_wise_gemma(config: dict[str, Any]) -> CostWiseGemmaSpec:
    """Read the configuration of CostWiseGemmaForCausalLM.

    Its token compression is an option of a request (`compress_ratio`) and not supported.

    Raises:
        UnsupportedCheckpoint: the checkpoint has an output matrix in place of the heads.
    """
    if config.get("layer_wise") is not True:
        raise UnsupportedCheckpoint(
            "layer_wise is not true; this architecture is supported with one head per layer only"
        )
    gemma = read_gemma2(config)
    layers = tuple(range(config["start_layer"], gemma.num_layers + 1, config["layer_sep"]))
    # The reference differs from its config.json in two points:
    # - it runs on scaled_dot_product_attention, which has no cap, so attn_logit_softcapping has no effect;
    # - it reads the requested layer with the first head, independent of the layer (gemma_model.py counts heads by their
    #   place among the requested layers, not among all).
    return CostWiseGemmaSpec(
        **vars(gemma) | {"attention_cap": None}, cutoff_layers=layers, heads=(0,) * len(layers)
    )


class MiniCPMLayer(DecoderLayer):
    """A Llama layer whose two residual branches are scaled."""

    def __init__(self, spec: MiniCPMSpec, index: int, weights: Weights) -> None:
        super().__init__(spec, index, weights)
        self.out = ScaledResidual(self.out, spec.residual_scale)
        self.down = ScaledResidual(self.down, spec.residual_scale)


class MiniCPMDecoder(Decoder):
    """Packed batch → hidden states."""

    layer = MiniCPMLayer


class ScaledResidual:
    """residual + scale · (x · Wᵀ)"""

    def __init__(self, linear: Residual, scale: float) -> None:
        self.linear, self.scale = linear, scale

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        y = self.linear(x) * self.scale
        return y if residual is None else residual + y


class LayerHeads:
    """The heads of a layerwise reranker: one row of weights per cutoff layer, in fp32."""

    readout: Readout = "last"

    def __init__(self, spec: LayerwiseSpec, backbone: DecoderSpec, weights: Weights) -> None:
        size = backbone.hidden_size
        # all heads are loaded, including the unused ones, so that no tensor of the checkpoint is left over
        names = [f"lm_head.{i}.linear_head.weight" for i in range(len(spec.cutoff_layers))]
        rows = torch.cat([weights.take(name, 1, size, dtype=torch.float32) for name in names])
        self.rows = dict(zip(spec.cutoff_layers, rows[list(spec.heads)], strict=True))
        self.last, self.cap = spec.cutoff_layers[-1], backbone.logit_cap

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the last tokens after `batch.depth` layers."""
        return capped(hidden.float() @ self.rows[batch.depth or self.last], self.cap)
