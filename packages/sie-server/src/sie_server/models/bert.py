"""BERT, RoBERTa and XLM-R encoders: one forward pass, post-norm, learned absolute positions.

The three differ in what the spec says: position offset, token-type rows, names of the prefix.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sie_server.models.attention import attention
from sie_server.models.layers import ACTIVATIONS, LayerNorm, Linear, Weights
from sie_server.models.packed import PackedBatch
from sie_server.models.spec import EncoderSpec, UnsupportedCheckpoint


class BertEncoder:
    """Packed batch → hidden states."""

    def __init__(self, spec: EncoderSpec, weights: Weights) -> None:
        if spec.hidden_act not in ACTIVATIONS:
            raise UnsupportedCheckpoint(
                f"hidden_act {spec.hidden_act!r} is not served; served: {', '.join(ACTIVATIONS)}"
            )
        self.spec = spec
        table, size = weights.at("embeddings"), spec.hidden_size
        self.words = table.take("word_embeddings.weight", spec.vocab_size, size)
        self.positions = table.take("position_embeddings.weight", spec.position_rows, size)
        self.types = table.take("token_type_embeddings.weight", spec.type_rows, size)
        self.norm = LayerNorm.load(table, "LayerNorm", size, spec.layer_norm_eps)
        self.layers = [BertLayer(spec, weights.at(f"encoder.layer.{i}")) for i in range(spec.num_layers)]

    def forward(self, batch: PackedBatch, *, first_token_only: bool) -> Tensor:
        """Hidden states of the last layer: [rows, hidden], or [sequences, hidden] of the first tokens.

        In the second case the last layer computes nothing but what those tokens need: same values, 1/layers of the
        feed-forward work saved.
        """
        x = F.embedding(batch.ids, self.words) + F.embedding(
            batch.positions + self.spec.position_offset, self.positions
        )
        # (XLM-)RoBERTa has a single token type; BERT checkpoints with one row read every token as type 0 too
        x = self.norm(
            x + (F.embedding(batch.types, self.types) if self.spec.type_rows > 1 else self.types[0])
        )
        for layer in self.layers[:-1]:
            x = layer(x, batch)
        return self.layers[-1](x, batch, first_token_only=first_token_only)


class BertLayer:
    """Attention and feed-forward, each followed by residual and layer norm."""

    def __init__(self, spec: EncoderSpec, weights: Weights) -> None:
        size, eps = spec.hidden_size, spec.layer_norm_eps
        self.heads = spec.num_heads
        self.qkv = Linear.fused(weights.at("attention.self"), ["query", "key", "value"], size, size)
        self.out = Linear.load(weights, "attention.output.dense", size, size)
        self.attention_norm = LayerNorm.load(weights, "attention.output.LayerNorm", size, eps)
        self.up = Linear.load(weights, "intermediate.dense", spec.intermediate_size, size)
        self.activation = ACTIVATIONS[spec.hidden_act]
        self.down = Linear.load(weights, "output.dense", size, spec.intermediate_size)
        self.norm = LayerNorm.load(weights, "output.LayerNorm", size, eps)

    def __call__(self, x: Tensor, batch: PackedBatch, *, first_token_only: bool = False) -> Tensor:
        q, k, v, x = self._first_token_qkv(x, batch) if first_token_only else (*self._qkv(x), x)
        x = self.attention_norm(x + self.out(attention(q, k, v, batch)))
        return self.norm(x + self.down(self.activation(self.up(x))))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # each [rows, heads, dim], views
        return q, k, v

    def _first_token_qkv(self, x: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries of the first tokens only, keys and values of all; and the first tokens' rows of `x`."""
        asking, (only_q, both_kv) = x[batch.first_rows], self.qkv.split(x.shape[1])
        k, v = both_kv(x).unflatten(1, (2, self.heads, -1)).unbind(1)
        return only_q(asking).unflatten(1, (self.heads, -1)), k, v, asking
