"""What a checkpoint is: the frozen facts that `models.checkpoint` reads and everything after it works from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sie_server.templates import RerankTemplate

Pooling = Literal["cls", "mean"]
Activation = Literal["identity", "sigmoid"]


class UnsupportedCheckpoint(Exception):
    """The checkpoint is readable but not one we can serve; the message says why and what would do."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What every transformer has to say about itself; each family adds its own fields."""

    vocab_size: int
    hidden_size: int
    max_length: int  # tokens; the longest sequence it has positions for
    pad_token_id: int
    token_types: bool = False  # the second text of a pair is marked with token type 1
    skip_padding_positions: bool = False  # a padding token inside a text has no position of its own


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer and an activation in a folder of its own, as sentence-transformers saves them."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str  # a name in `models.modules.ACTIVATIONS`
    scores: bool  # its output is the cross-encoder's logit


@dataclass(frozen=True)
class NormSpec:
    """A layer norm in a folder of its own."""

    folder: str
    inputs: int

    @property
    def outputs(self) -> int:
        return self.inputs


ModuleSpec = DenseSpec | NormSpec


@dataclass(frozen=True)
class ClassifierSpec:
    """A cross-encoder: one logit per pair, and the function that makes a score of it.

    With `modules` the head is a pooling and what `modules.json` lists after it; without, it is the architecture's own.
    """

    activation: Activation
    pooling: Pooling = "cls"
    modules: tuple[ModuleSpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CausalSpec(ClassifierSpec):
    """A causal reranker: a filled template, and the logit of its answer's token, or of one minus another's."""

    template: RerankTemplate


@dataclass(frozen=True)
class EmbeddingSpec:
    """A pooled vector, and one vector per token when `token_vectors`.

    With `dense_weight` the checkpoint also scores pairs, as the embedded model does:
    `dense_weight · cos(q, d) + Σᵢ wᵢ maxⱼ cos(qᵢ, dⱼ) / Σᵢ wᵢ`, w being the query tokens' weights.
    """

    pooling: Pooling
    normalize: bool
    token_vectors: bool = False
    dense_weight: float | None = None
    modules: tuple[ModuleSpec, ...] = ()  # between pooling and normalisation


@dataclass(frozen=True, kw_only=True)
class ProjectionSpec:
    """One linear layer between the hidden states and the token vectors."""

    folder: str | None  # of its own weight file; None: it stands among the backbone's weights
    inputs: int
    outputs: int
    bias: bool = False
    residual: bool = False  # its input is added to its output, through a matrix where the widths differ


@dataclass(frozen=True, kw_only=True)
class LateInteractionSpec:
    """ColBERT: one short vector per token; the score is the sum over query tokens of the best match (`maxsim`)."""

    projections: tuple[ProjectionSpec, ...]
    query_marker: str  # the token put after the first one; empty: none
    document_marker: str
    query_length: int  # tokens, markers and special tokens included
    expand_queries: bool  # fill queries up to `query_length` with mask tokens, whose vectors count
    attend_to_expansion: bool  # those mask tokens are seen by the others
    skip_words: tuple[str, ...]  # tokens of documents that are read but not matched

    @property
    def dim(self) -> int:
        """Width of a token vector."""
        return self.projections[-1].outputs


@dataclass(frozen=True)
class ModelSpec:
    """Everything the engine needs to know about a checkpoint."""

    architecture: str
    backbone: BackboneSpec
    head: ClassifierSpec | EmbeddingSpec | LateInteractionSpec
    max_seq_length: int  # default limit, tokens per text or pair including special tokens
    compat: bool = False  # runs through transformers: right, but padded and slower

    @property
    def scores(self) -> bool:
        """True when the checkpoint can serve `score`."""
        return not isinstance(self.head, EmbeddingSpec) or self.head.dense_weight is not None

    @property
    def takes_instruction(self) -> bool:
        """True when a request may say how relevance is to be judged."""
        return isinstance(self.head, CausalSpec) and self.head.template.takes_instruction

    @property
    def outputs(self) -> list[str]:
        """What clients can ask for: score, dense, multivector."""
        outputs = ["score"] if self.scores else []
        if isinstance(self.head, EmbeddingSpec):
            outputs += ["dense", "multivector"] if self.head.token_vectors else ["dense"]
        if isinstance(self.head, LateInteractionSpec):
            outputs.append("multivector")
        return outputs

    @property
    def dims(self) -> dict[str, int]:
        """Width of each vector output."""
        width = self.head.dim if isinstance(self.head, LateInteractionSpec) else self.backbone.hidden_size
        sizes = {name: width for name in self.outputs if name != "score"}
        if "dense" in sizes and isinstance(self.head, EmbeddingSpec) and self.head.modules:
            sizes["dense"] = self.head.modules[-1].outputs
        return sizes


def read_json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedCheckpoint(f"{path.name} is missing in {path.parent}") from None
    except (ValueError, OSError) as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise UnsupportedCheckpoint(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content
