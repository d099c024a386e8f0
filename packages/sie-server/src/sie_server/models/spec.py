"""The specs of a checkpoint: frozen facts that `models.checkpoints` reads and every later step uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sie_server import files
from sie_server.catalog.contents import instead_of_config
from sie_server.templates import RerankTemplate
from sie_server.templates.pair_settings import Truncation

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last"]
Poolings = tuple[Pooling, ...]  # their vectors are concatenated
Activation = Literal["identity", "sigmoid"]


class UnsupportedCheckpoint(Exception):
    """The checkpoint cannot be read or served; the message says why."""


@dataclass(frozen=True)
class AttentionNeeds:
    """The properties of a model's attention that decide how it is computed (`layers.attention.choice`)."""

    head_dim: int
    dense: str | None = None  # the part of it that only dense blocks can compute, for messages; None: none


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """The fields that every transformer has; each family adds its own."""

    vocab_size: int
    hidden_size: int
    max_length: int  # tokens; the model has no positions for longer sequences
    pad_token_id: int
    token_types: bool = False  # the second text of a pair has token type 1
    skip_padding_positions: bool = False  # a padding token inside a text is not counted as a position

    @property
    def attention(self) -> AttentionNeeds:
        """What decides how attention is computed."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its attention needs")

    @property
    def products(self) -> tuple[tuple[int, int], ...] | None:
        """The shapes [outputs, inputs] of the weights that the int8 format rounds; None: the family has no such one."""
        return None


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer and an activation in a separate folder, as sentence-transformers saves them."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str  # a name in `models.heads.modular.ACTIVATIONS`
    scores: bool  # the output is the cross-encoder's logit


@dataclass(frozen=True)
class NormSpec:
    """A layer norm in a separate folder."""

    folder: str
    inputs: int

    @property
    def outputs(self) -> int:
        return self.inputs


ModuleSpec = DenseSpec | NormSpec


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier, and the one that is its score."""

    count: int = 1
    chosen: int = 0
    independent: bool = False  # each has its own probability; else they share one


@dataclass(frozen=True)
class ClassifierSpec:
    """A cross-encoder: one logit per pair, and the function that turns it into a score.

    With `modules` the head is a pooling followed by these modules of `modules.json`. Without them it is the
    architecture's own classifier.
    """

    activation: Activation
    pooling: Poolings = ("cls",)
    modules: tuple[ModuleSpec, ...] = ()
    truncation: Truncation = "longest-first"  # how a pair is cut; templates have rules of their own
    labels: Labels = Labels()  # of the architecture's own classifier


@dataclass(frozen=True, kw_only=True)
class CausalSpec(ClassifierSpec):
    """A causal reranker: it reads a filled template; the score is the logit of a token, or the difference of two."""

    template: RerankTemplate


@dataclass(frozen=True, kw_only=True)
class PromptedClassifierSpec(CausalSpec):
    """A reranker that reads a filled template and whose logit comes from its architecture's own classifier."""

    padding: int | None = None  # a token that the classifier takes for padding at the end of a prompt


@dataclass(frozen=True, kw_only=True)
class LayerwiseSpec(CausalSpec):
    """A causal reranker with a head after each of several layers; the last is the default."""

    cutoff_layers: tuple[int, ...]  # layers after which a score may be read, counted from 1
    heads: tuple[int, ...]  # the index of the checkpoint's head for each cutoff layer


@dataclass(frozen=True)
class Prompts:
    """The prompts that an embedding model expects before a text: name → text, and the name of its default.

    The names and their order are those of sentence-transformers' `encode_query` and `encode_document`
    (https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html). One difference: a
    `passage` or `corpus` prompt of the file is used for documents, where version 6.2 puts its own empty `document`
    prompt first.
    """

    texts: dict[str, str] = field(default_factory=dict)
    default: str | None = None

    @property
    def any(self) -> bool:
        """True when the model was trained with a prompt; newer files also list empty ones."""
        return any(self.texts.values())

    def of(self, is_query: bool | None) -> str:
        """Return the prompt of a query or a document; with None (unknown) a document's, else the default."""
        names = ("query",) if is_query else ("document", "passage", "corpus")
        named = next((name for name in names if name in self.texts), None)
        name = self.default if named is None and is_query is None else named
        return "" if name is None else self.texts[name]


@dataclass(frozen=True)
class EmbeddingSpec:
    """An embedding model: a pooled vector, and one vector per token with `token_vectors`.

    With `dense_weight` the checkpoint also scores pairs, as the embedded model does:
    `dense_weight · cos(q, d) + Σᵢ wᵢ maxⱼ cos(qᵢ, dⱼ) / Σᵢ wᵢ`, w being the query tokens' weights.
    """

    pooling: Poolings
    normalize: bool
    token_vectors: bool = False
    dense_weight: float | None = None
    modules: tuple[ModuleSpec, ...] = ()  # between pooling and normalisation
    prompts: Prompts = field(default_factory=Prompts)

    @property
    def vectors(self) -> list[str]:
        """The outputs of `encode`."""
        return ["dense", "multivector"] if self.token_vectors else ["dense"]

    @property
    def scores(self) -> bool:
        """True when the model can also score pairs."""
        return self.dense_weight is not None


@dataclass(frozen=True, kw_only=True)
class ProjectionSpec:
    """One linear layer between the hidden states and the token vectors."""

    folder: str | None  # the folder of its weight file; None: its weights are in the backbone's file
    inputs: int
    outputs: int
    bias: bool = False
    activation: str = "Identity"  # a name in `models.heads.modular.ACTIVATIONS`
    residual: bool = False  # the input is added to the output, through a matrix where the widths differ


@dataclass(frozen=True, kw_only=True)
class LateInteractionSpec:
    """ColBERT: one short vector per token; the score is the sum over query tokens of the best match (`maxsim`)."""

    projections: tuple[ProjectionSpec, ...]
    dim: int  # width of a token vector
    query_marker: str = ""  # a token inserted after the first one; empty: none
    document_marker: str = ""
    query_prompt: str = ""  # precedes the text and is tokenised with it
    document_prompt: str = ""
    strip: bool = True  # spaces around a text are removed
    query_length: int  # tokens, including markers and special tokens
    expand_to: int  # queries are filled up to this length with mask tokens, which are scored; 0: no expansion
    attend_to_expansion: bool  # the other tokens attend to these mask tokens
    expansion_token: str | None = None  # used instead of the tokenizer's mask token
    skip_words: tuple[str, ...]  # tokens of documents that are read but not scored

    # the same attributes as those of EmbeddingSpec
    normalize = True
    scores = True
    vectors = ("multivector",)
    prompts = Prompts()  # requests cannot replace the prompts above


@dataclass(frozen=True, kw_only=True)
class ListwiseSpec:
    """A listwise reranker: it reads several documents in one prompt; scores are cosines."""

    query_length: int  # tokens
    block_length: int  # tokens of query and documents in one prompt

    # the same attributes as those of EmbeddingSpec
    scores = True
    vectors = ()


@dataclass(frozen=True)
class ModelSpec:
    """All facts about a checkpoint that the engine needs."""

    architecture: str
    backbone: BackboneSpec
    head: ClassifierSpec | EmbeddingSpec | LateInteractionSpec | ListwiseSpec
    # default limit, tokens per text or pair including special tokens (listwise: per document)
    max_seq_length: int
    compat: bool = False  # runs through transformers: same scores, but padded and slower
    bare: bool = False  # a model without its head, regardless of the class that the checkpoint was saved from
    warning: str | None = None  # a reason to doubt the scores, for logs and the model list

    @property
    def scores(self) -> bool:
        """True when the checkpoint can serve `score`."""
        return isinstance(self.head, ClassifierSpec) or self.head.scores

    @property
    def takes_instruction(self) -> bool:
        """True when a request may have an instruction."""
        if isinstance(self.head, CausalSpec):
            return self.head.template.takes_instruction
        return isinstance(self.head, ListwiseSpec)

    @property
    def outputs(self) -> list[str]:
        """The outputs that clients can request: score, dense, sparse, multivector."""
        outputs = ["score"] if self.scores else []
        if not isinstance(self.head, ClassifierSpec):
            outputs += self.head.vectors
        return outputs

    @property
    def dims(self) -> dict[str, int]:
        """The width of each vector output."""
        width = self.head.dim if isinstance(self.head, LateInteractionSpec) else self.backbone.hidden_size
        sizes = {name: width for name in self.outputs if name != "score"}
        if "dense" in sizes and isinstance(self.head, EmbeddingSpec):
            modules, modes = self.head.modules, len(self.head.pooling)
            sizes["dense"] = modules[-1].outputs if modules else width * modes
        if "sparse" in sizes:
            sizes["sparse"] = self.backbone.vocab_size
        return sizes


def inside(directory: Path, folder: str) -> Path:
    """Return the path of a folder named in modules.json.

    Raises:
        UnsupportedCheckpoint: the folder is outside the checkpoint.
    """
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise UnsupportedCheckpoint(
            f"modules.json names the folder {folder!r}, which is outside the checkpoint"
        )
    return directory / path


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file whose top-level value is a `kind`.

    Raises:
        UnsupportedCheckpoint: the file is missing or unreadable, has a number that is not finite, or another type.
    """
    try:
        content = files.read_json(path)
    except FileNotFoundError:
        reason = f"; {instead_of_config(path.parent)}" if path.name == "config.json" else ""
        raise UnsupportedCheckpoint(f"{path.name} is missing in {path.parent}{reason}") from None
    except (ValueError, OSError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UnsupportedCheckpoint(f"{path} cannot be read: {why}") from error
    if not isinstance(content, kind):
        raise UnsupportedCheckpoint(f"{path} holds a {type(content).__name__}; expected a {kind.__name__}")
    return content
