"""What a checkpoint is: the frozen facts that `models.checkpoints.reader` reads and everything after it works from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sie_server.templates import RerankTemplate

Pooling = Literal["cls", "mean", "last"]
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
    activation: str  # a name in `models.heads.modular.ACTIVATIONS`
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


@dataclass(frozen=True, kw_only=True)
class PromptedClassifierSpec(CausalSpec):
    """A reranker that reads a filled template, too, and whose logit comes from its architecture's own classifier."""


@dataclass(frozen=True, kw_only=True)
class LayerwiseSpec(CausalSpec):
    """A causal reranker with a head of its own after each of several layers; the last is the default."""

    cutoff_layers: tuple[int, ...]  # layers that a score may be read after, counted from 1
    heads: tuple[int, ...]  # which of the checkpoint's heads reads each


@dataclass(frozen=True)
class Prompts:
    """What an embedding model wants before a text: name → text, and the name of its default.

    The names and their order are those of sentence-transformers' `encode_query` and `encode_document`
    (https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html). One difference: a
    `passage` or `corpus` prompt of the file is used for documents, where version 6.2 puts its own empty `document`
    prompt first.
    """

    texts: dict[str, str] = field(default_factory=dict)
    default: str | None = None

    @property
    def any(self) -> bool:
        """True when the model was trained with a prompt; newer files name empty ones, too."""
        return any(self.texts.values())

    def of(self, is_query: bool | None) -> str:
        """What stands before a query, or a document; None (not said): a document's, else the default."""
        names = ("query",) if is_query else ("document", "passage", "corpus")
        named = next((name for name in names if name in self.texts), None)
        name = self.default if named is None and is_query is None else named
        return "" if name is None else self.texts[name]


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
    prompts: Prompts = field(default_factory=Prompts)

    @property
    def vectors(self) -> list[str]:
        """What `encode` gives."""
        return ["dense", "multivector"] if self.token_vectors else ["dense"]

    @property
    def scores(self) -> bool:
        """True when it can score a pair, too."""
        return self.dense_weight is not None


@dataclass(frozen=True, kw_only=True)
class ProjectionSpec:
    """One linear layer between the hidden states and the token vectors."""

    folder: str | None  # of its own weight file; None: it stands among the backbone's weights
    inputs: int
    outputs: int
    bias: bool = False
    activation: str = "Identity"  # a name in `models.heads.modular.ACTIVATIONS`
    residual: bool = False  # its input is added to its output, through a matrix where the widths differ


@dataclass(frozen=True, kw_only=True)
class LateInteractionSpec:
    """ColBERT: one short vector per token; the score is the sum over query tokens of the best match (`maxsim`)."""

    projections: tuple[ProjectionSpec, ...]
    dim: int  # width of a token vector
    query_marker: str = ""  # the token put after the first one; empty: none
    document_marker: str = ""
    query_prompt: str = ""  # stands before the text and is tokenised with it
    document_prompt: str = ""
    strip: bool = True  # spaces around a text are not read
    lower_case: bool = False  # texts are lower-cased, whatever the tokenizer does
    query_length: int  # tokens, markers and special tokens included
    expand_to: int  # fill queries up to so many tokens with mask tokens, whose vectors count; 0: none
    attend_to_expansion: bool  # those mask tokens are seen by the others
    expansion_token: str | None = None  # instead of the tokenizer's mask token
    skip_words: tuple[str, ...]  # tokens of documents that are read but not matched

    # as an EmbeddingSpec has them
    normalize = True
    scores = True
    vectors = ("multivector",)
    prompts = Prompts()  # a caller cannot replace its own


@dataclass(frozen=True, kw_only=True)
class ListwiseSpec:
    """A listwise reranker: a request's documents stand in one prompt; the score is a cosine (`engine.kinds.listwise`)."""

    query_length: int  # tokens
    block_length: int  # tokens that query and documents of one prompt may take

    # as an EmbeddingSpec has them
    scores = True
    vectors = ()


@dataclass(frozen=True)
class ModelSpec:
    """Everything the engine needs to know about a checkpoint."""

    architecture: str
    backbone: BackboneSpec
    head: ClassifierSpec | EmbeddingSpec | LateInteractionSpec | ListwiseSpec
    max_seq_length: (
        int  # default limit, tokens per text or pair including special tokens (listwise: per document)
    )
    compat: bool = False  # runs through transformers: right, but padded and slower

    @property
    def scores(self) -> bool:
        """True when the checkpoint can serve `score`."""
        return isinstance(self.head, ClassifierSpec) or self.head.scores

    @property
    def takes_instruction(self) -> bool:
        """True when a request may say how relevance is to be judged."""
        if isinstance(self.head, CausalSpec):
            return self.head.template.takes_instruction
        return isinstance(self.head, ListwiseSpec)

    @property
    def outputs(self) -> list[str]:
        """What clients can ask for: score, dense, sparse, multivector."""
        outputs = ["score"] if self.scores else []
        if not isinstance(self.head, ClassifierSpec):
            outputs += self.head.vectors
        return outputs

    @property
    def dims(self) -> dict[str, int]:
        """Width of each vector output."""
        width = self.head.dim if isinstance(self.head, LateInteractionSpec) else self.backbone.hidden_size
        sizes = {name: width for name in self.outputs if name != "score"}
        if "dense" in sizes and isinstance(self.head, EmbeddingSpec) and self.head.modules:
            sizes["dense"] = self.head.modules[-1].outputs
        if "sparse" in sizes:
            sizes["sparse"] = self.backbone.vocab_size
        return sizes


def inside(directory: Path, folder: str) -> Path:
    """A folder that modules.json names; only those of the checkpoint itself are read.

    Raises:
        UnsupportedCheckpoint: it is somewhere else.
    """
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise UnsupportedCheckpoint(f"modules.json names the folder {folder!r}, outside the checkpoint")
    return directory / path


def read_json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnsupportedCheckpoint(f"{path.name} is missing in {path.parent}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    if not isinstance(content, kind):
        raise UnsupportedCheckpoint(f"{path} holds a {type(content).__name__}, not a {kind.__name__}")
    return content
