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


@dataclass(frozen=True, kw_only=True)
class SpladeSpec(EmbeddingSpec):
    """A masked language model whose vector has one entry per vocabulary entry."""

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
        masked = read_json(directory / "config.json").get("architectures") == ["BertForMaskedLM"]
        return {} if masked else None
    for module in read_json(path, list):
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".SpladePooling"):
            config: dict[str, Any] = read_json(inside(directory, str(module["path"])) / "config.json")
            return config
    return None


def read_splade(directory: Path, pooling: dict[str, Any]) -> SpladeSpec:
    """Read a sentence-transformers `SparseEncoder` over `BertForMaskedLM`.

    Raises:
        UnsupportedCheckpoint: the architecture, the pooling or the activation is another one.
    """
    config = read_json(directory / "config.json")
    if config.get("architectures") != ["BertForMaskedLM"]:
        raise UnsupportedCheckpoint(
            f"SpladePooling is supported for BertForMaskedLM only, got {config.get('architectures')}"
        )
    strategy = pooling.get("pooling_strategy", "max")
    function = pooling.get("activation_function", "relu")
    if strategy not in ("max", "sum") or function not in ("relu", "log1p_relu"):
        raise UnsupportedCheckpoint(
            f"SpladePooling {strategy!r} of {function!r} is not supported; supported: max or sum of relu or log1p_relu"
        )
    return SpladeSpec(
        ("cls",),
        False,
        activation_name=config.get("hidden_act", "gelu"),
        eps=config.get("layer_norm_eps", 1e-12),
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
        head = weights.at("cls.predictions")
        self.spec = spec
        self.dense = Linear.load(head, "transform.dense", size, size, dtype=fp32)
        self.norm = LayerNorm.load(head, "transform.LayerNorm", size, spec.eps, fp32)
        bias = head.take("bias", vocabulary, dtype=fp32)
        # not registered under a name: its input is one sequence at a time, so no adapter could be applied to it
        table = weights.at("bert.embeddings")
        if spec.tied:
            self.out = Linear(table.take("word_embeddings.weight", vocabulary, size, dtype=fp32), bias)
        else:
            # the decoder has its own bias, and transformers does not use the other one
            decoder = head.at("decoder")
            weight = decoder.take("weight", vocabulary, size, dtype=fp32)
            self.out = Linear(weight, decoder.take("bias", vocabulary, dtype=fp32))

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
