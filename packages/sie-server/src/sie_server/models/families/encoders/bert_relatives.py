"""BERT's relatives that are published with their own code, which is not needed and never loaded.

Sources are the published configurations, text-embeddings-inference (`gte.rs`, `jina.rs`) and the conversion tables of
transformers 5 (`conversion_mapping.py`, "gte" and "jina_embeddings_v3").
"""

from __future__ import annotations

from typing import Any

from sie_server.models.families.encoders.bert import BertSpec, Layout, check_sizes
from sie_server.models.heads.classifier import Classifier, DenseClassifier
from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.linear import Weights
from sie_server.models.layers.rotary import inverse_frequencies
from sie_server.models.spec import BackboneSpec, UnsupportedCheckpoint

FLASH_LAYOUT = Layout(
    embedding_norm="emb_ln",
    layers="encoder.layers",
    qkv=("mixer.Wqkv",),
    out="mixer.out_proj",
    attention_norm="norm1",
    up="mlp.fc1",
    down="mlp.fc2",
    norm="norm2",
)
NEW_LAYOUT = Layout(
    qkv=("attention.qkv_proj",),
    out="attention.o_proj",
    attention_norm="attn_ln",
    up="mlp.up_gate_proj",
    down="mlp.down_proj",
    norm="mlp_ln",
)
JINA_GATED_LAYOUT = Layout(up="mlp.gated_layers", down="mlp.wo", norm="mlp.layernorm")
GATES = {"geglu": "gelu", "reglu": "relu"}  # feed_forward_type → the gate's activation


def read_xlm_roberta_flash(config: dict[str, Any]) -> BertSpec:
    """Read the configuration of jina-reranker-v2-base-multilingual: XLM-R with other weight names.

    Its positions are absolute; other checkpoints of the same code (jina-embeddings-v3) have rotary positions.
    """
    kind = _one_of(config, "position_embedding_type", ("absolute", "rotary"), "absolute")
    _one_of(config, "hidden_act", ACTIVATIONS, "gelu")
    pad = config.get("pad_token_id", 1)
    rotary = kind == "rotary"
    return BertSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"] - pad - 1,
        pad_token_id=pad,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        position_rows=0 if rotary else config["max_position_embeddings"],
        position_offset=pad + 1,
        type_rows=config.get("type_vocab_size", 1),
        layout=FLASH_LAYOUT,
        frequencies=_frequencies(config, config.get("rotary_emb_base", 10_000.0)) if rotary else (),
    )


def read_new(config: dict[str, Any]) -> BertSpec:
    """Read the `new` architecture (mGTE, Zhang et al., 2024, https://arxiv.org/abs/2407.19669): rotary, gated.

    NTK scaling by f, as published, multiplies the base by f and divides every frequency by f^(2 / dim).
    """
    _one_of(config, "position_embedding_type", ("rope",), "rope")
    _one_of(config, "hidden_act", ACTIVATIONS, "gelu")
    _one_of(config, "layer_norm_type", ("layer_norm",), "layer_norm")
    _one_of(config, "pack_qkv", (True,), True)
    _one_of(config, "logn_attention_scale", (False,), False)
    base, divisor = config.get("rope_theta", 10_000.0), 1.0
    scaling = config.get("rope_scaling")
    if scaling:
        factor = scaling.get("factor", 1.0)
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None or factor <= 1:
            raise UnsupportedCheckpoint(
                f"rope_scaling {scaling!r} is not supported; supported: type 'ntk' with a factor above 1"
            )
        base = base * factor
        divisor = factor ** (2 * config["num_attention_heads"] / config["hidden_size"])
    types = config.get("type_vocab_size", 0)
    return BertSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"],
        pad_token_id=config.get("pad_token_id", 0),
        token_types=types > 1,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        position_rows=0,
        position_offset=0,
        type_rows=types,
        layout=NEW_LAYOUT,
        frequencies=tuple(f / divisor for f in _frequencies(config, base)),
        gated=True,
    )


def read_jina_bert(config: dict[str, Any]) -> BertSpec:
    """Read a JinaBERT configuration (jina-reranker-v1, jina-embeddings-v2): BERT with ALiBi, optionally gated.

    The norms of queries and keys in jina-embeddings-v2-base-code are not supported; that checkpoint fails to load
    because of its additional weights.
    """
    _one_of(config, "position_embedding_type", ("alibi",), "absolute")
    kind = _one_of(config, "feed_forward_type", ("original", *GATES), "original")
    activation = _one_of(config, "hidden_act", ACTIVATIONS, "gelu")
    check_sizes(config)
    return BertSpec(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        max_length=config["max_position_embeddings"],
        pad_token_id=config.get("pad_token_id", 0),
        token_types=config["type_vocab_size"] > 1,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        hidden_act=GATES.get(kind, activation),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        position_rows=0,
        position_offset=0,
        type_rows=config["type_vocab_size"],
        layout=JINA_GATED_LAYOUT if kind in GATES else Layout(),
        gated=kind in GATES,
        gate_first=True,
        alibi=True,
    )


def new_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load a classifier like BERT's; the dense layer is in the pooler."""
    return DenseClassifier(spec.hidden_size, weights, "new.pooler.dense", "classifier", labels=labels)


def _frequencies(config: dict[str, Any], theta: float) -> tuple[float, ...]:
    return tuple(inverse_frequencies(config["hidden_size"] // config["num_attention_heads"], theta).tolist())


def _one_of(config: dict[str, Any], key: str, supported: Any, default: Any) -> Any:
    value = config.get(key, default)
    if value not in supported:
        raise UnsupportedCheckpoint(
            f"{key} {value!r} is not supported; supported: {', '.join(map(str, supported))}"
        )
    return value
