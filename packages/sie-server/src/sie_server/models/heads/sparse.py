"""Heads with more outputs than a pooled vector: bge-m3's three heads and SPLADE's masked-language-model head.

bge-m3 (Chen et al., 2024, https://arxiv.org/abs/2402.03216), as FlagEmbedding computes it: `sparse_linear` followed by
relu outputs a weight for every token; the sparse vector has the largest weight of each token id, without special
tokens. `colbert_linear` outputs a vector of length 1 for every token except [CLS]. SPLADE (Formal et al., 2021,
https://arxiv.org/abs/2109.10086): log(1 + relu(logit)) of every vocabulary entry, then the maximum (or the sum) over
all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.linear import LayerNorm, Linear, Weights
from sie_server.models.spec import BackboneSpec, EmbeddingSpec, UnsupportedCheckpoint, inside, read_json

M3_FILES = ("sparse_linear.pt", "colbert_linear.pt")
# FlagEmbedding drops these tokens from sparse vectors
SPECIAL = ("cls_token", "eos_token", "pad_token", "unk_token")
ScoreMode = Literal["dense", "sparse", "multivector", "weighted"]


@dataclass(frozen=True, kw_only=True)
class M3Spec(EmbeddingSpec):
    """bge-m3: one encoder with three heads."""

    special_tokens: tuple[str, ...]  # texts of tokens that never have a lexical weight

    @property
    def vectors(self) -> list[str]:
        return ["dense", "sparse", "multivector"]

    @property
    def scores(self) -> bool:
        return True


@dataclass(frozen=True)
class MaskedHead:
    """The names of a masked language model's head, and the fields of config.json that it depends on."""

    dense: str
    norm: str
    decoder: str
    bias: str  # of the decoder, where its matrix is the word embeddings
    words: str  # the word embeddings
    activation: str | None = "hidden_act"  # None: gelu
    eps: str | None = "layer_norm_eps"  # None: 1e-12
    optional: bool = False  # ModernBERT: each bias has a field of its own


def _lm_head(prefix: str) -> MaskedHead:
    names = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
    return MaskedHead(*names, f"{prefix}.embeddings.word_embeddings", activation=None)


# by architecture; the classes of transformers 5 that end with `ForMaskedLM`
MASKED_HEADS = {
    "BertForMaskedLM": MaskedHead(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
        "cls.predictions.bias",
        "bert.embeddings.word_embeddings",
    ),
    "CamembertForMaskedLM": _lm_head("roberta"),
    "DistilBertForMaskedLM": MaskedHead(
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "vocab_projector.bias",
        "distilbert.embeddings.word_embeddings",
        activation="activation",
        eps=None,
    ),
    "MPNetForMaskedLM": _lm_head("mpnet"),
    "ModernBertForMaskedLM": MaskedHead(
        "head.dense",
        "head.norm",
        "decoder",
        "decoder.bias",
        "model.embeddings.tok_embeddings",
        activation="classifier_activation",
        eps="norm_eps",
        optional=True,
    ),
    "RobertaForMaskedLM": _lm_head("roberta"),
    "XLMRobertaForMaskedLM": _lm_head("roberta"),
}


@dataclass(frozen=True, kw_only=True)
class SpladeSpec(EmbeddingSpec):
    """A masked language model whose vector has one entry per vocabulary entry."""

    head: MaskedHead
    biases: tuple[bool, bool, bool]  # of dense, norm and decoder
    activation_name: str  # of the head's transform
    eps: float
    tied: bool  # the output matrix is the word embeddings
    sums: bool  # sum over tokens instead of the maximum
    twice: bool  # log(1 + x) is applied a second time

    @property
    def vectors(self) -> list[str]:
        return ["sparse"]


def read_m3(directory: Path, plain: EmbeddingSpec) -> EmbeddingSpec:
    """Return `plain`, extended by bge-m3's other heads where the checkpoint has their files.

    Raises:
        UnsupportedCheckpoint: one of the two files is missing, or no special tokens are named.
    """
    present = [name for name in M3_FILES if (directory / name).exists()]
    if not present:
        return plain
    if len(present) == 1:
        [missing] = set(M3_FILES) - set(present)
        raise UnsupportedCheckpoint(f"{missing} is missing in {directory}, where {present[0]} exists")
    config = read_json(directory / "tokenizer_config.json")
    tokens = [config[name] for name in SPECIAL if config.get(name) is not None]
    special = tuple(t["content"] if isinstance(t, dict) else str(t) for t in tokens)
    if not special:
        raise UnsupportedCheckpoint("tokenizer_config.json names no special tokens (cls_token, eos_token …)")
    return M3Spec(plain.pooling, plain.normalize, prompts=plain.prompts, special_tokens=special)


def splade_module(directory: Path) -> dict[str, Any] | None:
    """Return the configuration of the SpladePooling module; None without one.

    A masked language model without modules.json has the module with its defaults, as in sentence-transformers'
    `SparseEncoder`.
    """
    path = directory / "modules.json"
    if not path.exists():
        named = read_json(directory / "config.json").get("architectures") or [None]
        return {} if named[0] in MASKED_HEADS else None
    for module in read_json(path, list):
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".SpladePooling"):
            config: dict[str, Any] = read_json(inside(directory, str(module["path"])) / "config.json")
            return config
    return None


def read_splade(directory: Path, architecture: str, pooling: dict[str, Any]) -> SpladeSpec:
    """Read a sentence-transformers `SparseEncoder` over a masked language model.

    Raises:
        UnsupportedCheckpoint: the architecture, the pooling or the activation is another one.
    """
    config = read_json(directory / "config.json")
    head = MASKED_HEADS.get(architecture)
    if head is None:
        raise UnsupportedCheckpoint(
            f"SpladePooling needs a masked language model, got {architecture!r}; supported: {', '.join(MASKED_HEADS)}"
        )
    strategy = pooling.get("pooling_strategy", "max")
    function = pooling.get("activation_function", "relu")
    if strategy not in ("max", "sum") or function not in ("relu", "log1p_relu"):
        raise UnsupportedCheckpoint(
            f"SpladePooling {strategy!r} of {function!r} is not supported; supported: max or sum of relu or log1p_relu"
        )
    activation = config.get(head.activation, "gelu") if head.activation else "gelu"
    if activation not in ACTIVATIONS:
        raise UnsupportedCheckpoint(
            f"{head.activation} {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    defaults = {"classifier_bias": False, "norm_bias": False, "decoder_bias": True}
    dense, norm, decoder = (
        bool(config.get(name, default)) or not head.optional for name, default in defaults.items()
    )
    return SpladeSpec(
        ("cls",),
        False,
        head=head,
        biases=(dense, norm, decoder),
        activation_name=activation,
        eps=config.get(head.eps, 1e-5 if head.optional else 1e-12) if head.eps else 1e-12,
        tied=config.get("tie_word_embeddings", True),
        sums=strategy == "sum",
        twice=function == "log1p_relu",
    )


class M3Head:
    """Token weights and token vectors, in fp32."""

    def __init__(self, size: int, sparse: Weights, colbert: Weights) -> None:
        fp32 = torch.float32
        self.sparse = Linear(sparse.take("weight", 1, size, dtype=fp32), sparse.take("bias", 1, dtype=fp32))
        self.colbert = Linear(
            colbert.take("weight", size, size, dtype=fp32), colbert.take("bias", size, dtype=fp32)
        )

    def lexical(self, hidden: Tensor) -> Tensor:
        """Return [rows] fp32, not below 0, from [rows, hidden]."""
        return F.relu(self.sparse(hidden.float())).squeeze(1)

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return [rows, hidden] fp32, not normalised, from [rows, hidden]."""
        return self.colbert(hidden.float())


class SpladeHead:
    """Dense → activation → layer norm → one logit per vocabulary entry, in fp32."""

    def __init__(self, spec: SpladeSpec, backbone: BackboneSpec, weights: Weights) -> None:
        size, vocabulary, fp32 = backbone.hidden_size, backbone.vocab_size, torch.float32
        names, (dense, norm, decoder) = spec.head, spec.biases
        self.spec = spec
        self.dense = Linear.load(weights, names.dense, size, size, dtype=fp32, bias=dense)
        self.norm = LayerNorm.load(weights, names.norm, size, spec.eps, fp32, bias=norm)
        # where the decoder is not the word embeddings, it has its own bias, and transformers does not use the other one
        bias = weights.take(names.bias, vocabulary, dtype=fp32) if decoder else None
        table = names.words if spec.tied else names.decoder
        if not spec.tied and decoder:
            bias = weights.take(f"{names.decoder}.bias", vocabulary, dtype=fp32)
        # not registered under a name: its input is one sequence at a time, so no adapter could be applied to it
        self.out = Linear(weights.take(f"{table}.weight", vocabulary, size, dtype=fp32), bias)
        weights.leave(f"{names.decoder}.")  # a copy of the word embeddings in older files

    def transformed(self, hidden: Tensor) -> Tensor:
        """Return the input of the output matrix, [rows, hidden] fp32, from [rows, hidden] of the whole batch."""
        activation = ACTIVATIONS[self.spec.activation_name]
        return self.norm(activation(self.dense(hidden.float())))

    def pooled(self, states: Tensor) -> Tensor:
        """Return [vocabulary] fp32, not below 0, from one sequence's part of `transformed`, [tokens, hidden]."""
        logits = self.out(states)
        if not self.spec.sums:
            # both functions are monotonic, so the maximum may be taken first
            return self._squash(logits.amax(0))
        return self._squash(logits).sum(0)

    def _squash(self, logits: Tensor) -> Tensor:
        once = torch.log1p(F.relu(logits))
        return torch.log1p(once) if self.spec.twice else once
