"""Encoders that give more than a pooled vector: bge-m3's three heads and SPLADE's masked-language-model head.

bge-m3 (Chen et al., 2024, https://arxiv.org/abs/2402.03216), as FlagEmbedding computes it: `sparse_linear` gives every
token a weight, relu, the largest per token id, special tokens dropped; `colbert_linear` gives every token but [CLS] a
vector of length 1. SPLADE (Formal et al., 2021, https://arxiv.org/abs/2109.10086): log(1 + relu(logit)) of every
vocabulary entry, the largest (or the sum) over all tokens.
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
SPECIAL = ("cls_token", "eos_token", "pad_token", "unk_token")  # what FlagEmbedding drops from sparse vectors
ScoreMode = Literal["dense", "sparse", "multivector", "weighted"]


@dataclass(frozen=True, kw_only=True)
class M3Spec(EmbeddingSpec):
    """bge-m3: one encoder, three read-outs."""

    special_tokens: tuple[str, ...]  # texts of tokens that never carry lexical weight

    @property
    def vectors(self) -> list[str]:
        return ["dense", "sparse", "multivector"]

    @property
    def scores(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class SpladeSpec(EmbeddingSpec):
    """A masked language model read out over its vocabulary."""

    activation_name: str  # of the head's transform
    eps: float
    tied: bool  # the output rows are the word embeddings
    sums: bool  # over tokens, instead of the largest
    twice: bool  # a second log(1 + x)

    @property
    def vectors(self) -> list[str]:
        return ["sparse"]


def read_m3(directory: Path, plain: EmbeddingSpec) -> EmbeddingSpec:
    """`plain` with bge-m3's other heads where the checkpoint has their files.

    Raises:
        UnsupportedCheckpoint: one of the two is missing, or the special tokens are not named.
    """
    there = [name for name in M3_FILES if (directory / name).exists()]
    if not there:
        return plain
    if len(there) == 1:
        [missing] = set(M3_FILES) - set(there)
        raise UnsupportedCheckpoint(f"{missing} is missing in {directory}; {there[0]} is there")
    config = read_json(directory / "tokenizer_config.json")
    tokens = [config[name] for name in SPECIAL if config.get(name) is not None]
    special = tuple(t["content"] if isinstance(t, dict) else str(t) for t in tokens)
    if not special:
        raise UnsupportedCheckpoint("tokenizer_config.json names no special tokens (cls_token, eos_token …)")
    return M3Spec(plain.pooling, plain.normalize, prompts=plain.prompts, special_tokens=special)


def splade_module(directory: Path) -> dict[str, Any] | None:
    """The configuration of the SpladePooling module, if the checkpoint has one.

    A masked language model without modules.json has it with its defaults, as sentence-transformers' `SparseEncoder`
    reads such a repository.
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
    """The sentence-transformers `SparseEncoder` layout over `BertForMaskedLM`.

    Raises:
        UnsupportedCheckpoint: another architecture, pooling or activation.
    """
    config = read_json(directory / "config.json")
    if config.get("architectures") != ["BertForMaskedLM"]:
        raise UnsupportedCheckpoint(
            f"SpladePooling is served over BertForMaskedLM, not {config.get('architectures')}"
        )
    strategy = pooling.get("pooling_strategy", "max")
    function = pooling.get("activation_function", "relu")
    if strategy not in ("max", "sum") or function not in ("relu", "log1p_relu"):
        raise UnsupportedCheckpoint(
            f"SpladePooling {strategy!r} of {function!r} is not served; served: max or sum of relu or log1p_relu"
        )
    return SpladeSpec(
        "cls",
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
        """[rows, hidden] → [rows] fp32, not below 0."""
        return F.relu(self.sparse(hidden.float())).squeeze(1)

    def tokens(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] → [rows, hidden] fp32, not normalised yet."""
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
        # made without a name: it sees one sequence at a time, so no adapter could be applied to it
        table = weights.at("bert.embeddings")
        if spec.tied:
            self.out = Linear(table.take("word_embeddings.weight", vocabulary, size, dtype=fp32), bias)
        else:  # the decoder then has a bias of its own, and transformers leaves the other one unused
            decoder = head.at("decoder")
            weight = decoder.take("weight", vocabulary, size, dtype=fp32)
            self.out = Linear(weight, decoder.take("bias", vocabulary, dtype=fp32))

    def transformed(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] of the whole batch → what the logits are made of, [rows, hidden] fp32."""
        activation = ACTIVATIONS[self.spec.activation_name]
        return self.norm(activation(self.dense(hidden.float())))

    def pooled(self, states: Tensor) -> Tensor:
        """One sequence's part of `transformed`, [tokens, hidden] → [vocabulary] fp32, not below 0."""
        logits = self.out(states)
        if not self.spec.sums:
            return self._squash(logits.amax(0))  # both functions rise, so the largest may be taken first
        return self._squash(logits).sum(0)

    def _squash(self, logits: Tensor) -> Tensor:
        once = torch.log1p(F.relu(logits))
        return torch.log1p(once) if self.spec.twice else once
