"""Llama, Mistral, Qwen2, Qwen3 and Gemma decoders: one forward pass, pre-norm, rotary positions, gated MLP.

The spec holds the differences of the five: biases, norms of queries and keys, and for Gemma norm weights counted from
1 and scaled embeddings. As rerankers they are read out at the last token, with one or two rows of the output matrix.
As embedding models their vector is the last token's state. Some were trained further to attend to later tokens too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import PackedBatch, Readout, States
from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.adapted import one_row_each
from sie_server.models.layers.attention.causal import CausalAttention, Product
from sie_server.models.layers.attention.full import attention
from sie_server.models.layers.linear import Linear, Residual, Weights, capped
from sie_server.models.layers.rotary import RopeSpec, Rotary, read_rope, scaled_frequencies
from sie_server.models.layers.rows import GATES, rms_normed
from sie_server.models.lora import Target
from sie_server.models.spec import AttentionNeeds, BackboneSpec, UnsupportedCheckpoint


@dataclass(frozen=True, kw_only=True)
class DecoderSpec(BackboneSpec):
    """A pre-norm decoder with rotary positions and grouped queries."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    rms_norm_eps: float
    rope: RopeSpec
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # queries and keys are normalised per head
    norm_offset: float = 0.0  # norms multiply by offset + weight
    embedding_scale: float = 1.0
    tied: bool = False  # the output matrix is the embedding table
    # per layer: the number of tokens that a token attends to, itself included; None or missing: all
    windows: tuple[int | None, ...] = ()
    logit_cap: float | None = None  # logits are limited to ±cap by a tanh
    causal: bool = True  # tokens attend to themselves and earlier tokens; False: to all of their sequence

    @property
    def attention(self) -> AttentionNeeds:
        return AttentionNeeds(self.head_dim)


# queries, keys and values, layer, whether there is one query per sequence → [query rows, heads * dim]
Attend = Callable[[Tensor, States, "DecoderLayer", bool], Tensor]


def read_llama(config: dict[str, Any]) -> DecoderSpec:
    """Read a Llama configuration: biases only where it names them."""
    bias = bool(config.get("attention_bias", False))
    return _read(config, qkv_bias=bias, out_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def read_mistral(config: dict[str, Any]) -> DecoderSpec:
    """Read a Mistral configuration: Llama without biases; the window limits the length of sequences."""
    return _read(config, window=config.get("sliding_window"))


def read_qwen2(config: dict[str, Any]) -> DecoderSpec:
    """Read a Qwen2 configuration: queries, keys and values have biases."""
    return _read(config, qkv_bias=True, window=_qwen_window(config))


def read_qwen3(config: dict[str, Any]) -> DecoderSpec:
    """Read a Qwen3 configuration: queries and keys are normalised; the head width is a separate field."""
    bias = bool(config.get("attention_bias", False))
    return _read(config, qkv_bias=bias, out_bias=bias, qk_norm=True, window=_qwen_window(config))


def read_gemma(config: dict[str, Any]) -> DecoderSpec:
    """Read a Gemma configuration; `hidden_activation` is not among its fields (transformers 5, GemmaConfig)."""
    named = config.get("hidden_act", "gelu")
    # early releases name "gelu" and mean the tanh form
    return read_gemmas(config, "gelu_pytorch_tanh" if named == "gelu" else named)


def read_gemmas(config: dict[str, Any], activation: str) -> DecoderSpec:
    """Read the fields that both versions of Gemma have.

    Norm weights count from 1, embeddings are scaled by √hidden, and the output matrix is tied by default.
    """
    if config.get("use_bidirectional_attention"):
        raise UnsupportedCheckpoint(
            "use_bidirectional_attention is not supported for Gemma; only causal attention is"
        )
    bias = bool(config.get("attention_bias", False))
    return _read(
        config | {"hidden_act": activation},
        qkv_bias=bias,
        out_bias=bias,
        norm_offset=1.0,
        embedding_scale=float(config["hidden_size"]) ** 0.5,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _qwen_window(config: dict[str, Any]) -> int | None:
    return config.get("sliding_window") if config.get("use_sliding_window") else None


def _read(config: dict[str, Any], *, window: int | None = None, **differences: Any) -> DecoderSpec:
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"hidden_act {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    heads, positions = config["num_attention_heads"], config["max_position_embeddings"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        # the window has no effect on sequences that fit into it, so it is the length limit
        max_length=min(positions, window) if window else positions,
        pad_token_id=config.get("pad_token_id") or 0,
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        intermediate_size=config["intermediate_size"],
        hidden_act=activation,
        rms_norm_eps=config["rms_norm_eps"],
        rope=read_rope(config, head_dim),
        causal=bool(config.get("is_causal", True)),  # the field that transformers 5 reads
        **{"tied": bool(config.get("tie_word_embeddings", False))} | differences,
    )


class Decoder:
    """Packed batch → hidden states; prefix → keys and values."""

    layer: type[DecoderLayer]  # set below; replaced by families that differ in more than the spec

    def __init__(self, spec: DecoderSpec, weights: Weights) -> None:
        self.spec = spec
        self.words = weights.take("embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        self.layers = [self.layer(spec, i, weights.at(f"layers.{i}")) for i in range(spec.num_layers)]
        self.norm = RMSNorm.load(weights, "norm", spec.hidden_size, spec)
        self.frequencies = scaled_frequencies(spec.rope).to(self.words.device)
        # rounded to the model's dtype, as in training (transformers, GemmaTextScaledWordEmbedding)
        self.scale = float(torch.tensor(spec.embedding_scale, dtype=self.words.dtype))

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return hidden states after the final norm: [rows, hidden], or [sequences, hidden] of the read-out tokens.

        In the second case the last layer computes keys and values for all rows and everything else for these tokens
        only. The last layer is that of `batch.depth`.
        """
        x, rotary, attend = self._start(batch)
        *before, last = self.layers[: batch.depth]
        kept = _Kept(batch)
        for layer in before:
            x = layer(x, rotary, attend, kept.add(layer.states(x, rotary)))
        rows, states = batch.rows_of(readout), kept.add(last.states(x, rotary))
        kept.finish()
        if readout == "first" and self.spec.causal:
            # the only row of a sequence attends to all its keys, as its last token does, and its first one does not
            return self.norm(last(x, rotary, attend, states)[rows])
        return self.norm(last(x, rotary, attend, states, output_rows=rows))

    def prefix_states(self, batch: PackedBatch) -> list[list[States]]:
        """Return copies of the keys and values per layer of every sequence in the batch, in packed order."""
        x, rotary, attend = self._start(batch)
        spans = [
            slice(start, start + length) for start, length in zip(batch.starts, batch.lengths, strict=True)
        ]
        kept: list[list[States]] = [[] for _ in spans]
        layers = self.layers[: batch.depth]
        for layer in layers:
            keys, values = states = layer.states(x, rotary)
            for own, rows in zip(kept, spans, strict=True):
                own.append((keys[rows].clone(), values[rows].clone()))
            if layer is not layers[-1]:
                x = layer(x, rotary, attend, states)
        return kept

    def _start(self, batch: PackedBatch) -> tuple[Tensor, Rotary, Attend]:
        x = F.embedding(batch.ids, self.words)
        if self.scale != 1.0:
            x = x * self.scale
        return x, Rotary(batch.positions, self.frequencies), self._attend(batch, x.dtype)

    def _attend(self, batch: PackedBatch, dtype: torch.dtype) -> Attend:
        if not self.spec.causal:
            return lambda query, states, _, one_row: attention(query, *states, batch, one_row=one_row)
        causal = CausalAttention(batch, dtype, self.spec.windows)
        return lambda query, states, layer, one_row: causal(
            query, states, layer.index, layer.product, scale=layer.scale, one_row=one_row
        )


class _Kept:
    """The states of the prefixes in a batch, copied for later passes."""

    def __init__(self, batch: PackedBatch) -> None:
        self._parts = batch.segments.kept if batch.segments else ()
        self._layers: list[list[States]] = [[] for _ in self._parts]

    def add(self, states: States) -> States:
        """Keep the rows of each prefix, and return the states of all rows."""
        keys, values = states
        for own, (_, rows) in zip(self._layers, self._parts, strict=True):
            own.append((keys[rows].clone(), values[rows].clone()))
        return states

    def finish(self) -> None:
        """Give each prefix the states of all layers at once: after a failed pass it has none."""
        for own, (prefix, _) in zip(self._layers, self._parts, strict=True):
            prefix.layers = own


class DecoderLayer:
    """Norm → attention → residual, norm → gated feed-forward → residual."""

    product: Product = staticmethod(scaled_dot_product_attention)
    scale: float | None = None  # of the attention logits, as in `product`; None: 1 / √dim

    def __init__(self, spec: DecoderSpec, index: int, weights: Weights) -> None:
        self.spec, self.index = spec, index
        size, inner, dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
        queries, keys = spec.num_heads * dim, spec.num_kv_heads * dim
        attention, mlp = weights.at("self_attn"), weights.at("mlp")
        self.query = Linear.fused(attention, {"q_proj": queries}, size, bias=spec.qkv_bias)
        self.key_value = Linear.fused(attention, {"k_proj": keys, "v_proj": keys}, size, bias=spec.qkv_bias)
        self.out: Residual = Linear.fused(attention, {"o_proj": size}, queries, bias=spec.out_bias)
        self.query_norm = RMSNorm.load(attention, "q_norm", dim, spec) if spec.qk_norm else None
        self.key_norm = RMSNorm.load(attention, "k_norm", dim, spec) if spec.qk_norm else None
        self.gate_up = Linear.fused(mlp, {"gate_proj": inner, "up_proj": inner}, size, bias=spec.mlp_bias)
        self.down: Residual = Linear.fused(mlp, {"down_proj": size}, inner, bias=spec.mlp_bias)
        self.gated = GATES[spec.hidden_act]
        self.attention_norm = RMSNorm.load(weights, "input_layernorm", size, spec)
        self.norm = RMSNorm.load(weights, "post_attention_layernorm", size, spec)

    def states(self, x: Tensor, rotary: Rotary) -> States:
        """Return the rotated keys and the values of every row, each [rows, key heads, dim]."""
        both = self.key_value(self.attention_norm(x)).unflatten(1, (2, self.spec.num_kv_heads, -1))
        keys, values = both.unbind(1)
        return rotary(self.key_norm(keys) if self.key_norm else keys), values

    def __call__(
        self,
        x: Tensor,
        rotary: Rotary,
        attend: Attend,
        states: States,
        output_rows: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output for `output_rows`, one per sequence; None: for all rows."""
        if output_rows is not None:
            x, rotary = x[output_rows], rotary.at(output_rows)
        one_row = output_rows is not None
        with one_row_each(one_row):
            q = self.query(self.attention_norm(x)).unflatten(1, (self.spec.num_heads, -1))
            q = rotary(self.query_norm(q) if self.query_norm else q)
            x = self.out(attend(q, states, self, one_row), residual=x)
            gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
            return self.down(self.gated(gate, up), residual=x)


Decoder.layer = DecoderLayer


class RMSNorm:
    """Root-mean-square normalisation over the last dimension, in fp32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    @classmethod
    def load(cls, weights: Weights, name: str, size: int, spec: DecoderSpec) -> RMSNorm:
        weight = weights.take(f"{name}.weight", size, dtype=torch.float32)
        return cls(weight + spec.norm_offset, spec.rms_norm_eps)

    def __call__(self, x: Tensor) -> Tensor:
        return rms_normed(x, self.weight, self.eps)


class TokenLogits:
    """The head of a causal reranker: one token's logit, or the difference of two, in fp32.

    It keeps only these tokens' rows of the output matrix.
    """

    readout: Readout = "last"

    def __init__(self, spec: DecoderSpec, weights: Weights, tokens: list[int], words: str) -> None:
        """Load the rows of `tokens`; `words` is the name of the embedding table."""
        shape = (spec.vocab_size, spec.hidden_size)
        # a tied checkpoint has the matrix once or, from older versions, twice
        own = not spec.tied or weights.has("lm_head.weight")
        name = "lm_head.weight" if own else words
        self.rows = Linear(weights.take_rows(name, tokens, *shape), None)  # 1 or 2 outputs, fp32
        self.cap = spec.logit_cap
        weights.became("lm_head", Target(self.rows, shape, slice(0, len(tokens)), tokens))

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the last tokens."""
        logits = capped(self.rows(hidden.float()), self.cap)
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 0] - logits[:, 1]
