"""Rerankers that can stop early: MiniCPM and Gemma 2 decoders with a score head after each of many layers.

bge-reranker-v2-minicpm-layerwise and bge-reranker-v2.5-gemma2-lightweight. The hidden state of the last token after the
chosen layer goes through the final norm and one row; the layers above are not computed. Facts are those of
FlagEmbedding 1.4.2 (inference/reranker/decoder_only/models).
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
    """A Llama whose parts are added scaled down, so that depth does not change their weight."""

    residual_scale: float
    cutoff_layers: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CostWiseGemmaSpec(Gemma2Spec):
    """Gemma 2 with heads in place of the output matrix."""

    cutoff_layers: tuple[int, ...]
    heads: tuple[int, ...]


def read_minicpm(config: dict[str, Any]) -> MiniCPMSpec:
    """LayerWiseMiniCPMForCausalLM.

    Raises:
        UnsupportedCheckpoint: heads that are not one row per layer.
    """
    wanted = {"head_multi": True, "head_type": "simple"}
    if wrong := {name: config.get(name) for name in wanted if config.get(name) != wanted[name]}:
        raise UnsupportedCheckpoint(f"{wrong} is not served for this architecture, only {wanted}")
    llama = read_llama(config)
    layers = tuple(range(config["start_layer"], llama.num_layers + 1))
    return MiniCPMSpec(
        **vars(llama) | {"embedding_scale": float(config["scale_emb"])},
        residual_scale=config["scale_depth"] / llama.num_layers**0.5,
        cutoff_layers=layers,
        heads=tuple(range(len(layers))),
    )


def read_cost_wise_gemma(config: dict[str, Any]) -> CostWiseGemmaSpec:
    """CostWiseGemmaForCausalLM. Its token compression (`compress_ratio`) is an option of a request, and not served.

    Raises:
        UnsupportedCheckpoint: it has an output matrix in place of the heads.
    """
    if config.get("layer_wise") is not True:
        raise UnsupportedCheckpoint("layer_wise other than true is not served for this architecture")
    gemma = read_gemma2(config)
    layers = tuple(range(config["start_layer"], gemma.num_layers + 1, config["layer_sep"]))
    # Two ways of the reference that its config.json does not tell:
    # - it runs on scaled_dot_product_attention, which has no cap, so attn_logit_softcapping has no effect there;
    # - it reads the layer that a request asks for with the first head, whichever layer that is (gemma_model.py counts
    #   heads by their place among the layers asked for, not among all).
    return CostWiseGemmaSpec(
        **vars(gemma) | {"attention_cap": None}, cutoff_layers=layers, heads=(0,) * len(layers)
    )


class MiniCPMLayer(DecoderLayer):
    """A Llama layer whose two parts are scaled."""

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
    """The read-out: one row of weights per cutoff layer, in fp32."""

    readout: Readout = "last"

    def __init__(self, spec: LayerwiseSpec, backbone: DecoderSpec, weights: Weights) -> None:
        size = backbone.hidden_size
        # all are taken, as there is one for each layer in the checkpoint, whether it is ever read or not
        names = [f"lm_head.{i}.linear_head.weight" for i in range(len(spec.cutoff_layers))]
        rows = torch.cat([weights.take(name, 1, size, dtype=torch.float32) for name in names])
        self.rows = dict(zip(spec.cutoff_layers, rows[list(spec.heads)], strict=True))
        self.last, self.cap = spec.cutoff_layers[-1], backbone.logit_cap

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """[sequences, hidden] of the last tokens, after `batch.depth` layers → [sequences] fp32."""
        return capped(hidden.float() @ self.rows[batch.depth or self.last], self.cap)
