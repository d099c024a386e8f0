"""LFM2 (Liquid AI, https://arxiv.org/abs/2511.23404) as an encoder.

The model is causal. Most layers are a short gated convolution over the last few tokens, the others attention with
grouped queries. Weights and formulas are those of transformers' `lfm2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.families.decoders.decoder import RMSNorm
from sie_server.models.layers.attention.causal import CausalAttention
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.layers.rotary import RopeSpec, Rotary, read_rope, scaled_frequencies
from sie_server.models.layers.rows import GATES
from sie_server.models.spec import AttentionNeeds, BackboneSpec, UnsupportedCheckpoint

ATTENTION, CONVOLUTION = "full_attention", "conv"  # the names in `layer_types`


@dataclass(frozen=True, kw_only=True)
class Lfm2Spec(BackboneSpec):
    """A pre-norm, causal model of convolutions and attention."""

    layer_types: tuple[str, ...]  # ATTENTION or CONVOLUTION, one per layer
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    taps: int  # tokens that a convolution reads, the current one included
    conv_bias: bool

    @property
    def attention(self) -> AttentionNeeds:
        return AttentionNeeds(self.head_dim)


def read_lfm2(config: dict[str, Any]) -> Lfm2Spec:
    """Read an LFM2 configuration; defaults are those of transformers' Lfm2Config."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return Lfm2Spec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"],
        pad_token_id=config.get("pad_token_id") or 0,
        layer_types=_layer_types(config),
        num_heads=heads,
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        intermediate_size=_intermediate_size(config),
        norm_eps=config.get("norm_eps", 1e-5),
        rope=read_rope({"rope_theta": 1_000_000.0} | config, head_dim),
        taps=config.get("conv_L_cache", 3),
        conv_bias=bool(config.get("conv_bias", False)),
    )


def _layer_types(config: dict[str, Any]) -> tuple[str, ...]:
    """Read `layer_types`, or `full_attn_idxs` of earlier files; without either every layer is attention."""
    count = config["num_hidden_layers"]
    attending = config.get("full_attn_idxs")
    attending = range(count) if attending is None else attending
    kinds = config.get("layer_types") or [ATTENTION if i in attending else CONVOLUTION for i in range(count)]
    if len(kinds) != count or not {ATTENTION, CONVOLUTION}.issuperset(kinds):
        raise UnsupportedCheckpoint(
            f"layer_types is {kinds!r}; expected {count} times {ATTENTION!r} or {CONVOLUTION!r}"
        )
    return tuple(kinds)


def _intermediate_size(config: dict[str, Any]) -> int:
    """Return two thirds of the configured width, which is that of an ungated feed-forward, rounded up."""
    size = int(config.get("block_ff_dim") or config["intermediate_size"])
    if not config.get("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    factor, multiple = config.get("block_ffn_dim_multiplier", 1.0), config.get("block_multiple_of", 256)
    if factor is None:
        return size
    return int(multiple * -(-int(factor * size) // multiple))


class Lfm2Encoder:
    """Packed batch → hidden states."""

    def __init__(self, spec: Lfm2Spec, weights: Weights) -> None:
        self.words = weights.take("embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        self.layers = [
            Lfm2Layer(spec, kind, weights.at(f"layers.{i}")) for i, kind in enumerate(spec.layer_types)
        ]
        self.norm = _norm(weights, "embedding_norm", spec.hidden_size, spec)
        self.frequencies = scaled_frequencies(spec.rope).to(self.words.device)

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return hidden states after the final norm: [rows, hidden], or [sequences, hidden] of the read-out tokens."""
        x = F.embedding(batch.ids, self.words)
        view = _View(batch, Rotary(batch.positions, self.frequencies), x.dtype)
        for layer in self.layers:
            x = layer(x, view)
        output_rows = batch.rows_of(readout)
        return self.norm(x if output_rows is None else x[output_rows])


class _View:
    """The attention and rotation angles of one batch, shared by all layers."""

    def __init__(self, batch: PackedBatch, rotary: Rotary, dtype: torch.dtype) -> None:
        self.batch, self.rotary = batch, rotary
        self.causal = CausalAttention(batch, dtype)
        self.seen = torch.ones(batch.rows, 1, dtype=dtype, device=batch.ids.device)
        for group in batch.masked:
            if group.mask is not None:
                self.seen[group.rows] = (group.mask[:, 0, 0] == 0).to(dtype).view(-1, 1)

    def before(self, x: Tensor, back: int) -> Tensor:
        """Return the row `back` rows before each row of x in its sequence, [rows, hidden]; 0 before the first row."""
        # filled, not multiplied by 0: a value of another sequence that is not finite must not spread
        return x.roll(back, 0).masked_fill((self.batch.positions < back)[:, None], 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return causal attention, [rows, heads * dim]; q is [rows, heads, dim], k and v [rows, key heads, dim]."""
        return self.causal(q, (k, v), 0)


class Lfm2Layer:
    """Norm → attention or convolution → residual, norm → gated feed-forward → residual."""

    def __init__(self, spec: Lfm2Spec, kind: str, weights: Weights) -> None:
        size, inner = spec.hidden_size, spec.intermediate_size
        self.mixer = (
            _Attention(spec, weights.at("self_attn"))
            if kind == ATTENTION
            else _Convolution(spec, weights.at("conv"))
        )
        self.mixer_norm = _norm(weights, "operator_norm", size, spec)
        mlp = weights.at("feed_forward")
        self.gate_up = Linear.fused(mlp, {"w1": inner, "w3": inner}, size, bias=False)
        self.down = Linear.load(mlp, "w2", size, inner, bias=False)
        self.norm = _norm(weights, "ffn_norm", size, spec)

    def __call__(self, x: Tensor, view: _View) -> Tensor:
        x = self.mixer(self.mixer_norm(x), view, residual=x)
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return self.down(GATES["silu"](gate, up), residual=x)


class _Attention:
    def __init__(self, spec: Lfm2Spec, weights: Weights) -> None:
        size, dim = spec.hidden_size, spec.head_dim
        self.heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        widths = [n * dim for n in self.heads]
        names = ("q_proj", "k_proj", "v_proj")
        self.qkv = Linear.fused(weights, dict(zip(names, widths, strict=True)), size, bias=False)
        self.out = Linear.load(weights, "out_proj", size, spec.num_heads * dim, bias=False)
        self.query_norm, self.key_norm = (
            _norm(weights, name, dim, spec) for name in ("q_layernorm", "k_layernorm")
        )

    def __call__(self, x: Tensor, view: _View, residual: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (sum(self.heads), -1)).split(self.heads, dim=1)
        q, k = view.rotary(self.query_norm(q)), view.rotary(self.key_norm(k))
        return self.out(view.attend(q, k, v), residual=residual)


class _Convolution:
    """out · (C ∘ conv(B ∘ x)), where B, C and x come from one projection."""

    def __init__(self, spec: Lfm2Spec, weights: Weights) -> None:
        size, bias = spec.hidden_size, spec.conv_bias
        self.inner = Linear.load(weights, "in_proj", 3 * size, size, bias=bias)
        self.out = Linear.load(weights, "out_proj", size, size, bias=bias)
        taps = weights.take("conv.weight", size, 1, spec.taps)
        self.taps = taps[:, 0].T  # [taps, hidden], the last is current
        self.bias = weights.take("conv.bias", size) if bias else None

    def __call__(self, x: Tensor, view: _View, residual: Tensor) -> Tensor:
        # masked tokens (the expansion of a query) are set to 0, as in transformers
        before, after, x = self.inner(x * view.seen).chunk(3, dim=-1)
        x = before * x
        mixed = x * self.taps[-1]
        for back in range(1, len(self.taps)):
            mixed = mixed + view.before(x, back) * self.taps[-1 - back]
        mixed = mixed if self.bias is None else mixed + self.bias
        return self.out(after * mixed, residual=residual)


def _norm(weights: Weights, name: str, size: int, spec: Lfm2Spec) -> RMSNorm:
    return RMSNorm(weights.take(f"{name}.weight", size, dtype=torch.float32), spec.norm_eps)
