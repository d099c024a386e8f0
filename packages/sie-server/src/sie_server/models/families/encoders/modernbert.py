"""ModernBERT encoders (Warner et al., 2024, https://arxiv.org/abs/2412.13663).

They are pre-norm, with rotary positions, a gated feed-forward, and layers of full attention alternating with layers of
sliding-window attention. Two forms of configuration are read: `global_rope_theta`, `local_rope_theta` and
`global_attn_every_n_layers` as published, and `rope_parameters` and `layer_types` as transformers 5 writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier
from sie_server.models.heads.pooling import pooled_states, pooling_readout
from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.adapted import one_row_each
from sie_server.models.layers.attention.full import attention
from sie_server.models.layers.attention.local import LocalAttention
from sie_server.models.layers.linear import LayerNorm, Linear, Weights
from sie_server.models.layers.rotary import Rotary, inverse_frequencies
from sie_server.models.layers.rows import GATES
from sie_server.models.spec import AttentionNeeds, BackboneSpec, Pooling, UnsupportedCheckpoint

GLOBAL, LOCAL = "full_attention", "sliding_attention"  # the names in `layer_types`
THETAS = {GLOBAL: 160_000.0, LOCAL: 10_000.0}  # used where the configuration names none


@dataclass(frozen=True, kw_only=True)
class ModernBertSpec(BackboneSpec):
    """A pre-norm encoder, and its classifier's fields from the same config.json."""

    layer_types: tuple[str, ...]  # GLOBAL or LOCAL, one per layer
    thetas: dict[str, float]  # rotary base of each type
    reach: int  # tokens to either side that a local layer attends to
    num_heads: int
    intermediate_size: int
    hidden_act: str
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    pooling: Pooling  # of the classifier, like the fields below
    classifier_act: str
    classifier_bias: bool

    @property
    def attention(self) -> AttentionNeeds:
        return AttentionNeeds(self.hidden_size // self.num_heads)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """The weights that the int8 format rounds."""
        size, inner = self.hidden_size, self.intermediate_size
        return len(self.layer_types) * ((3 * size, size), (size, size), (2 * inner, size), (size, inner))


def read_modernbert(config: dict[str, Any]) -> ModernBertSpec:
    """Read a ModernBERT configuration; defaults are those of transformers' ModernBertConfig."""
    acts = {key: config.get(key, "gelu") for key in ("hidden_activation", "classifier_activation")}
    for key, name in acts.items():
        if name not in ACTIVATIONS:
            raise UnsupportedCheckpoint(
                f"{key} {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
            )
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UnsupportedCheckpoint(f"classifier_pooling {pooling!r} is not supported; supported: cls, mean")
    return ModernBertSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config.get("max_position_embeddings", 8192),
        pad_token_id=config.get("pad_token_id") or 0,
        layer_types=_layer_types(config),
        thetas=_thetas(config),
        # half of the window, in both spellings; the newer one takes precedence (ModernBertConfig)
        reach=config.get("sliding_window") or config.get("local_attention", 128) // 2,
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        hidden_act=acts["hidden_activation"],
        norm_eps=config.get("norm_eps", 1e-5),
        norm_bias=config.get("norm_bias", False),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        pooling=pooling,
        classifier_act=acts["classifier_activation"],
        classifier_bias=config.get("classifier_bias", False),
    )


def _layer_types(config: dict[str, Any]) -> tuple[str, ...]:
    count, every = config["num_hidden_layers"], config.get("global_attn_every_n_layers", 3)
    types = config.get("layer_types") or [LOCAL if i % every else GLOBAL for i in range(count)]
    if len(types) != count or not set(types) <= set(THETAS):
        raise UnsupportedCheckpoint(
            f"layer_types names {len(types)} layers of types {sorted(set(types))}; "
            f"num_hidden_layers is {count}, supported types are {', '.join(THETAS)}"
        )
    return tuple(types)


def _thetas(config: dict[str, Any]) -> dict[str, float]:
    """Read the rotary base of each layer type from `rope_parameters`, or else from the older fields."""
    if config.get("rope_scaling"):
        raise UnsupportedCheckpoint(
            f"rope_scaling {config['rope_scaling']!r} is not supported for ModernBERT"
        )
    thetas: dict[str, float] = {}
    for kind, older in ((GLOBAL, "global_rope_theta"), (LOCAL, "local_rope_theta")):
        named = (config.get("rope_parameters") or {}).get(kind) or {}
        if named.get("rope_type", "default") != "default":
            raise UnsupportedCheckpoint(
                f"rope_parameters.{kind}.rope_type {named['rope_type']!r} is not supported; supported: 'default'"
            )
        # null, as published for the local base, means the global base
        theta = named.get("rope_theta", config.get(older, THETAS[kind]))
        thetas[kind] = float(thetas[GLOBAL] if theta is None else theta)
    return thetas


class ModernBertEncoder:
    """Packed batch → hidden states."""

    def __init__(self, spec: ModernBertSpec, weights: Weights) -> None:
        self.spec = spec
        norm = partial(LayerNorm.load, size=spec.hidden_size, eps=spec.norm_eps, bias=spec.norm_bias)
        table = weights.at("embeddings")
        self.words = table.take("tok_embeddings.weight", spec.vocab_size, spec.hidden_size)
        self.norm = norm(table, "norm")
        self.layers = [
            # the first layer has no norm: the embeddings are normalised already
            ModernBertLayer(spec, part, norm(part, "attn_norm") if i else None)
            for i, part in enumerate(weights.at(f"layers.{i}") for i in range(len(spec.layer_types)))
        ]
        self.final_norm = norm(weights, "final_norm")
        dim = spec.hidden_size // spec.num_heads
        self.frequencies = {
            kind: inverse_frequencies(dim, spec.thetas[kind]).to(self.words.device)
            for kind in set(spec.layer_types)
        }

    def forward(self, batch: PackedBatch, readout: Readout) -> Tensor:
        """Return hidden states after the final norm: [rows, hidden], or [sequences, hidden] of the read-out tokens."""
        x = self.norm(F.embedding(batch.ids, self.words))
        rotaries = {kind: Rotary(batch.positions, f) for kind, f in self.frequencies.items()}
        local = LocalAttention(batch, self.spec.reach, x.dtype) if LOCAL in rotaries else None
        output_rows = batch.rows_of(readout)
        for i, (layer, kind) in enumerate(zip(self.layers, self.spec.layer_types, strict=True)):
            rows = output_rows if i == len(self.layers) - 1 else None
            attend = (
                partial(local, readout=readout if rows is not None else "all")
                if local and kind == LOCAL
                else partial(attention, batch=batch, one_row=rows is not None)
            )
            x = layer(x, rotaries[kind], attend, rows)
        with one_row_each(output_rows is not None):
            return self.final_norm(x)


class ModernBertLayer:
    """Norm → attention → residual, norm → gated feed-forward → residual."""

    def __init__(self, spec: ModernBertSpec, weights: Weights, attention_norm: LayerNorm | None) -> None:
        size, inner = spec.hidden_size, spec.intermediate_size
        self.heads, self.attention_norm = spec.num_heads, attention_norm
        self.qkv = Linear.load(weights, "attn.Wqkv", 3 * size, size, bias=spec.attention_bias)
        self.out = Linear.load(weights, "attn.Wo", size, size, bias=spec.attention_bias)
        self.norm = LayerNorm.load(weights, "mlp_norm", size, spec.norm_eps, bias=spec.norm_bias)
        self.up_gate = Linear.load(weights, "mlp.Wi", 2 * inner, size, bias=spec.mlp_bias)
        self.gated = GATES[spec.hidden_act]
        self.down = Linear.load(weights, "mlp.Wo", size, inner, bias=spec.mlp_bias)

    def __call__(
        self,
        x: Tensor,
        rotary: Rotary,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        output_rows: Tensor | None,
    ) -> Tensor:
        """Return the layer's output for `output_rows`, one per sequence; None: for all rows."""
        normed = self.attention_norm(x) if self.attention_norm else x
        qkv = self.qkv(normed).unflatten(1, (3, self.heads, -1))  # [rows, 3, heads, dim]
        if output_rows is None:
            q, k = rotary(qkv[:, :2]).unbind(1)
        else:
            x, k = x[output_rows], rotary(qkv[:, 1])
            q = rotary.at(output_rows)(qkv[output_rows, 0])
        mixed = attend(q, k, qkv[:, 2])
        with one_row_each(output_rows is not None):
            x = self.out(mixed, residual=x)
            up, gate = self.up_gate(self.norm(x)).chunk(2, dim=-1)
            return self.down(self.gated(up, gate), residual=x)


class ModernBertClassifier:
    """Pooling → dense → activation → norm → one logit per label, in fp32."""

    def __init__(self, spec: ModernBertSpec, weights: Weights, labels: int) -> None:
        size, exact = spec.hidden_size, torch.float32
        self.pooling = (spec.pooling,)
        self.readout: Readout = pooling_readout(self.pooling)
        self.dense = Linear.load(weights, "head.dense", size, size, exact, bias=spec.classifier_bias)
        self.activation = ACTIVATIONS[spec.classifier_act]
        self.norm = LayerNorm.load(weights, "head.norm", size, spec.norm_eps, exact, bias=spec.norm_bias)
        self.out = Linear.load(weights, "classifier", labels, size, exact)

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from the hidden states of `readout`; [sequences, labels] of several."""
        pooled = pooled_states(hidden, batch, self.pooling)
        return self.out(self.norm(self.activation(self.dense(pooled)))).squeeze(1)


def modernbert_classifier(spec: ModernBertSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load the prediction head and classifier."""
    return ModernBertClassifier(spec, weights, labels)
