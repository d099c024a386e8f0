"""BERT, RoBERTa, XLM-R and their relatives: one forward pass, post-norm.

The spec holds the differences: positions (offset, rotary, ALiBi, relative), token-type rows, a gated feed-forward, and
the names of the weights. `bert_siblings` and `bert_relatives` read the configurations of the relatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.adapted import one_row_each
from sie_server.models.layers.attention.biased import (
    Bias,
    BiasedAttention,
    alibi,
    head_slopes,
    relative,
)
from sie_server.models.layers.attention.full import attention
from sie_server.models.layers.linear import LayerNorm, Linear, Weights, normed_residual
from sie_server.models.layers.rotary import Rotary
from sie_server.models.layers.rows import GATES
from sie_server.models.spec import AttentionNeeds, BackboneSpec, UnsupportedCheckpoint


@dataclass(frozen=True)
class Layout:
    """The names of the weights; `qkv` is one fused projection or three."""

    embedding_norm: str = "embeddings.LayerNorm"
    projection: str = "embeddings_project"  # of narrower embeddings
    relative_positions: str = "encoder.relative_attention_bias"
    layers: str = "encoder.layer"
    qkv: tuple[str, ...] = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
    out: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    norm: str = "output.LayerNorm"


@dataclass(frozen=True, kw_only=True)
class BertSpec(BackboneSpec):
    """A post-norm encoder."""

    num_layers: int
    num_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    position_rows: int  # rows of the position table; 0: no table
    position_offset: int  # row of the first token's position
    type_rows: int  # rows of the token-type table; 0: no table
    layout: Layout = Layout()
    # rotary positions: radians per position of each pair of dimensions; empty: not rotary
    frequencies: tuple[float, ...] = ()
    gated: bool = False  # feed-forward: activation(gate) * up, both from one product without bias
    gate_first: bool = False  # the gate is the first half of that product
    alibi: bool = False  # attention decreases with distance
    relative_ranges: int = 0  # rows of the table of relative positions; 0: no table
    embedding_size: int = 0  # width of the embeddings, which are then projected to `hidden_size`; 0: the same
    # the names of the layers where several have the same weights; empty: each has its own, `layout.layers` and a number
    shared_layers: tuple[str, ...] = ()

    @property
    def attention(self) -> AttentionNeeds:
        bias = "ALiBi" if self.alibi else "relative positions" if self.relative_ranges else None
        return AttentionNeeds(self.hidden_size // self.num_heads, bias)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """The weights that the int8 format rounds."""
        size, inner = self.hidden_size, self.intermediate_size
        layer = ((3 * size, size), (size, size), ((2 if self.gated else 1) * inner, size), (size, inner))
        before = ((size, self.embedding_size),) if self.embedding_size else ()
        return before + (len(set(self.shared_layers)) or self.num_layers) * layer


def read_bert(config: dict[str, Any]) -> BertSpec:
    """Read a BERT configuration: positions from row 0, token types from the tokenizer."""
    return _read(config, 0, token_types=config["type_vocab_size"] > 1)


def read_roberta(config: dict[str, Any]) -> BertSpec:
    """Read a RoBERTa or XLM-R configuration: positions from the row after the padding token's, one token type."""
    pad = config.get("pad_token_id", 1)
    return _read({**config, "pad_token_id": pad}, pad + 1 if type(pad) is int else 0, token_types=False)


def check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes that would otherwise fail at the first request.

    Raises:
        UnsupportedCheckpoint: a size is not a positive whole number, or does not fit another one.
    """
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in (*sizes, "max_position_embeddings", "type_vocab_size"):
        if type(config[name]) is not int or config[name] < 1:
            raise UnsupportedCheckpoint(
                f"config.json: {name} is {config[name]!r}; expected a whole number above 0"
            )
    if config["hidden_size"] % config["num_attention_heads"]:
        raise UnsupportedCheckpoint("config.json: hidden_size is not a multiple of num_attention_heads")
    pad = config.get("pad_token_id", 0)
    if type(pad) is not int or not 0 <= pad < config["vocab_size"]:
        raise UnsupportedCheckpoint(
            f"config.json: pad_token_id is {pad!r}; expected a row of the embedding table"
        )
    if not isinstance(config.get("layer_norm_eps", 0.0), float):
        raise UnsupportedCheckpoint(
            f"config.json: layer_norm_eps is {config['layer_norm_eps']!r}; expected a number"
        )


def _read(config: dict[str, Any], offset: int, *, token_types: bool) -> BertSpec:
    position_type = config.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise UnsupportedCheckpoint(
            f"position_embedding_type {position_type!r} is not supported; supported: 'absolute'"
        )
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise UnsupportedCheckpoint(
                f"config.json: {key} is true, which is not supported: it describes a decoder, whose attention is causal"
            )
    check_sizes(config)
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"hidden_act {config['hidden_act']!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return BertSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"] - offset,
        pad_token_id=config.get("pad_token_id", 0),
        token_types=token_types,
        skip_padding_positions=offset > 0,  # (XLM-)RoBERTa does not count padding tokens as positions
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        position_rows=config["max_position_embeddings"],
        position_offset=offset,
        type_rows=config["type_vocab_size"],
    )


class BertEncoder:
    """Packed batch → hidden states."""

    def __init__(self, spec: BertSpec, weights: Weights) -> None:
        self.spec = spec
        table, layout = weights.at("embeddings"), spec.layout
        size = spec.embedding_size or spec.hidden_size
        self.words = table.take("word_embeddings.weight", spec.vocab_size, size)
        self.positions = self.types = None
        if spec.position_rows:
            self.positions = table.take("position_embeddings.weight", spec.position_rows, size)
        if spec.type_rows:
            self.types = table.take("token_type_embeddings.weight", spec.type_rows, size)
        self.norm = LayerNorm.load(weights, layout.embedding_norm, size, spec.layer_norm_eps)
        self.projection = None
        if spec.embedding_size:
            self.projection = Linear.load(weights, layout.projection, spec.hidden_size, size)
        names = spec.shared_layers or [f"{layout.layers}.{i}" for i in range(spec.num_layers)]
        built = {name: BertLayer(spec, weights.at(name)) for name in dict.fromkeys(names)}
        self.layers = [built[name] for name in names]
        self.frequencies = torch.tensor(spec.frequencies, device=self.words.device)
        self.bias = _bias(spec, weights, self.words.device)

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return hidden states of the last layer: [rows, hidden], or [sequences, hidden] of the read-out tokens.

        In the second case the last layer computes only these tokens, with the same values, and saves 1/layers of the
        feed-forward work.
        """
        x = F.embedding(batch.ids, self.words)
        if self.positions is not None:
            x = x + F.embedding(batch.positions + self.spec.position_offset, self.positions)
        if self.types is not None:
            # with one row, as in (XLM-)RoBERTa, every token has type 0
            x = x + (F.embedding(batch.types, self.types) if self.spec.type_rows > 1 else self.types[0])
        x = self.norm(x)
        if self.projection is not None:
            x = self.projection(x)
        rotary = Rotary(batch.positions, self.frequencies) if self.spec.frequencies else None
        output_rows = batch.rows_of(readout)
        attend: Attend = partial(attention, batch=batch)
        if self.bias is not None:
            attend = BiasedAttention(batch, self.bias, output_rows, x.dtype)
        for layer in self.layers[:-1]:
            x = layer(x, attend, rotary)
        return self.layers[-1](x, attend, rotary, output_rows)


def _bias(spec: BertSpec, weights: Weights, device: torch.device) -> Bias | None:
    """Return the bias of attention by distance; None without one."""
    if spec.alibi:
        return alibi(torch.tensor(head_slopes(spec.num_heads), device=device))
    if spec.relative_ranges:
        table = weights.at(spec.layout.relative_positions)
        return relative(table.take("weight", spec.relative_ranges, spec.num_heads))
    return None


class Attend(Protocol):
    """Queries, keys and values → [query rows, hidden]; with `one_row` there is one query per sequence."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, one_row: bool = False) -> Tensor: ...


class BertLayer:
    """Attention and feed-forward, each followed by residual and layer norm."""

    def __init__(self, spec: BertSpec, weights: Weights) -> None:
        size, inner, eps = spec.hidden_size, spec.intermediate_size, spec.layer_norm_eps
        layout, self.heads = spec.layout, spec.num_heads
        self.gated, self.gate_first = spec.gated, spec.gate_first
        self.qkv = Linear.fused(weights, dict.fromkeys(layout.qkv, 3 * size // len(layout.qkv)), size)
        self.out = Linear.load(weights, layout.out, size, size)
        self.attention_norm = LayerNorm.load(weights, layout.attention_norm, size, eps)
        self.up = Linear.load(
            weights, layout.up, 2 * inner if self.gated else inner, size, bias=not self.gated
        )
        self.activation = spec.hidden_act
        self.down = Linear.load(weights, layout.down, size, inner)
        self.norm = LayerNorm.load(weights, layout.norm, size, eps)

    def __call__(
        self, x: Tensor, attend: Attend, rotary: Rotary | None, output_rows: Tensor | None = None
    ) -> Tensor:
        """Return the layer's output for `output_rows`, one per sequence; None: for all rows."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # each [rows, heads, dim], views
        if output_rows is not None:
            x, q = x[output_rows], q[output_rows]
        if rotary is not None:
            q, k = rotary.at(output_rows)(q), rotary(k)
        one_row = output_rows is not None
        mixed = attend(q, k, v, one_row=one_row)
        with one_row_each(one_row):
            x = normed_residual(self.attention_norm, self.out, mixed, x)
            return normed_residual(self.norm, self.down, self._inner(x), x)

    def _inner(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.up(x, activation=self.activation)
        up, gate = self.up(x).chunk(2, dim=-1)
        if self.gate_first:
            up, gate = gate, up
        return GATES[self.activation](gate, up)
