"""Gemma 2: Gemma with capped attention logits and a second norm after attention and after feed-forward.

Every other layer attends within a window. The window has no effect on sequences that fit into it, so it is the length
limit. The usual attention kernels cannot cap logits (`cap · tanh(logit / cap)`), so this attention consists of plain
products over blocks of query rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.families.decoders.decoder import (
    Decoder,
    DecoderLayer,
    DecoderSpec,
    RMSNorm,
    read_gemmas,
)
from sie_server.models.layers.linear import Residual, Weights, capped
from sie_server.models.spec import AttentionNeeds, UnsupportedCheckpoint

LOGITS = 2**26  # attention logits computed at a time, 256 MiB in fp32


@dataclass(frozen=True, kw_only=True)
class Gemma2Spec(DecoderSpec):
    """The fields of Gemma 2 in addition to those of Gemma."""

    attention_cap: float | None
    attention_scale: float  # of the attention logits

    @property
    def attention(self) -> AttentionNeeds:
        return AttentionNeeds(self.head_dim, "a cap on attention logits" if self.attention_cap else None)


def read_gemma2(config: dict[str, Any]) -> Gemma2Spec:
    """Read a Gemma 2 configuration; its fields have no defaults, because every library writes them."""
    # `hidden_act` is not among its fields (transformers 5, Gemma2Config)
    gemma = read_gemmas(config, config.get("hidden_activation", "gelu_pytorch_tanh"))
    if not gemma.causal:
        raise UnsupportedCheckpoint("is_causal false is not supported for Gemma 2; only causal attention is")
    return Gemma2Spec(
        **vars(
            replace(
                gemma,
                max_length=min(gemma.max_length, config["sliding_window"]),
                logit_cap=config["final_logit_softcapping"],
            )
        ),
        attention_cap=config["attn_logit_softcapping"],
        attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
    )


class Gemma2Layer(DecoderLayer):
    """A Gemma layer with two more norms, each applied before a residual is added."""

    def __init__(self, spec: Gemma2Spec, index: int, weights: Weights) -> None:
        super().__init__(spec, index, weights)
        size = spec.hidden_size
        # `post_attention_layernorm` precedes the feed-forward in other families; here it follows attention
        self.out = NormedResidual(self.out, self.norm)
        self.norm = RMSNorm.load(weights, "pre_feedforward_layernorm", size, spec)
        after = RMSNorm.load(weights, "post_feedforward_layernorm", size, spec)
        self.down = NormedResidual(self.down, after)
        scale, cap = spec.attention_scale, spec.attention_cap
        self.scale = scale
        self.product = (
            CappedAttention(scale, cap) if cap else partial(scaled_dot_product_attention, scale=scale)
        )


class Gemma2Decoder(Decoder):
    """Packed batch → hidden states."""

    layer = Gemma2Layer


class NormedResidual:
    """residual + norm(x · Wᵀ)"""

    def __init__(self, linear: Residual, norm: RMSNorm) -> None:
        self.linear, self.norm = linear, norm

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        y = self.norm(self.linear(x))
        return y if residual is None else residual + y


class CappedAttention:
    """A replacement for `scaled_dot_product_attention` that caps the logits."""

    def __init__(self, scale: float, cap: float) -> None:
        self.scale, self.cap = scale, cap

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool
    ) -> Tensor:
        """Return the shape of q, [count, heads, rows, dim]; k and v are [count, key heads, keys, dim]."""
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        rows, keys = q.shape[2], k.shape[2]
        step = max(1, LOGITS // (q.shape[0] * q.shape[1] * keys))
        parts = []
        for start in range(0, rows, step):
            logits = (q[:, :, start : start + step] @ k.transpose(2, 3)).float() * self.scale
            logits = capped(logits, self.cap)
            if is_causal:
                later = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device).triu(1 + start)
                logits = logits.masked_fill(later, float("-inf"))
            elif attn_mask is not None:
                logits = logits + (attn_mask[:, :, start : start + step] if rows > 1 else attn_mask)
            parts.append(logits.softmax(-1).to(v.dtype) @ v)
        return torch.cat(parts, dim=2)
