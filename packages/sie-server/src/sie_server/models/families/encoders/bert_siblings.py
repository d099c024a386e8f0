"""BERT's relatives in transformers: MPNet, DistilBERT, Electra, ALBERT, each with other names and one difference.

Sources are the classes of transformers 5 (`models/mpnet`, `distilbert`, `electra`, `albert`) and their configurations.
CamemBERT is RoBERTa with another vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sie_server.models.families.encoders.bert import BertSpec, Layout, read_bert, read_roberta
from sie_server.models.heads.classifier import Classifier, DenseClassifier
from sie_server.models.layers.linear import Weights
from sie_server.models.spec import BackboneSpec, UnsupportedCheckpoint

MPNET_LAYOUT = Layout(
    qkv=tuple(f"attention.attn.{part}" for part in "qkv"),
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
)
MPNET_PADDING = 1  # the row of the padding token, regardless of `pad_token_id`
MPNET_RANGES = 32  # of relative positions
DISTILBERT_LAYOUT = Layout(
    layers="transformer.layer",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norm="output_layer_norm",
)
# DistilBERT's own names of BERT's fields; the library takes either
DISTILBERT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}
MOST_LAYERS = 1000
ALBERT_LAYOUT = Layout(
    projection="encoder.embedding_hidden_mapping_in",
    qkv=tuple(f"attention.{part}" for part in ("query", "key", "value")),
    out="attention.dense",
    attention_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    norm="full_layer_layer_norm",
)


def read_mpnet(config: dict[str, Any]) -> BertSpec:
    """Read an MPNet configuration: RoBERTa's positions and a table of relative ones, no token types."""
    rows = config.get("relative_attention_num_buckets", MPNET_RANGES)
    if rows != MPNET_RANGES:
        raise UnsupportedCheckpoint(
            f"config.json: relative_attention_num_buckets is {rows!r}; supported: {MPNET_RANGES}, "
            "which transformers uses for every MPNet"
        )
    spec = read_roberta({**config, "pad_token_id": MPNET_PADDING, "type_vocab_size": 1})
    return replace(spec, type_rows=0, layout=MPNET_LAYOUT, relative_ranges=rows)


def read_distilbert(config: dict[str, Any]) -> BertSpec:
    """Read a DistilBERT configuration (Sanh et al., 2019, https://arxiv.org/abs/1910.01108).

    It has no token types, and the library fixes the epsilon of its norms.
    """
    named = {theirs: config[ours] for ours, theirs in DISTILBERT_FIELDS.items() if ours in config}
    spec = read_bert({**config, **named, "layer_norm_eps": 1e-12, "type_vocab_size": 1})
    return replace(spec, type_rows=0, layout=DISTILBERT_LAYOUT)


def read_electra(config: dict[str, Any]) -> BertSpec:
    """Read an Electra configuration (Clark et al., 2020, https://arxiv.org/abs/2003.10555): narrower embeddings."""
    spec = read_bert(config)
    width = config.get("embedding_size", 128)
    return spec if width == spec.hidden_size else replace(spec, embedding_size=width)


def read_albert(config: dict[str, Any]) -> BertSpec:
    """Read an ALBERT configuration (Lan et al., 2020, https://arxiv.org/abs/1909.11942): layers share their weights."""
    spec = read_bert({"hidden_act": "gelu_new", **config})
    layers, groups, inner = (
        spec.num_layers,
        config.get("num_hidden_groups", 1),
        config.get("inner_group_num", 1),
    )
    if groups > layers or layers * inner > MOST_LAYERS:
        raise UnsupportedCheckpoint(
            f"config.json: num_hidden_groups is {groups} and inner_group_num {inner}, with {layers} layers; "
            f"expected at most as many groups as layers, and {MOST_LAYERS} layers in total"
        )
    names = tuple(
        f"encoder.albert_layer_groups.{int(layer / (layers / groups))}.albert_layers.{part}"
        for layer in range(layers)
        for part in range(inner)
    )
    return replace(
        spec,
        embedding_size=config.get("embedding_size", 128),
        layout=ALBERT_LAYOUT,
        shared_layers=names,
    )


def distilbert_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load DistilBERT's classifier."""
    return DenseClassifier(spec.hidden_size, weights, "pre_classifier", "classifier", "relu", labels)


def electra_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load Electra's classifier, whose activation does not depend on the configuration."""
    return DenseClassifier(
        spec.hidden_size, weights, "classifier.dense", "classifier.out_proj", "gelu", labels
    )


def albert_classifier(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load ALBERT's classifier; the dense layer is the pooler."""
    return DenseClassifier(spec.hidden_size, weights, "albert.pooler", "classifier", "tanh", labels)
