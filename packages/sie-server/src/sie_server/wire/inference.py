"""Requests and responses of score, encode and inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

# A field whose value the decoder skips. `api.codec` then drops it, or replaces it as the comment of the field says.
if TYPE_CHECKING:
    Skipped = Any
    SkippedMap = Any
else:
    Skipped = Raw
    SkippedMap = Annotated[Raw, Meta(extra_json_schema={"anyOf": [{"type": "object"}, {"type": "null"}]})]
OutputType = Literal["dense", "sparse", "multivector"]
OutputDtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
ScoreType = Literal["logit", "probability", "maxsim", "cosine", "dot"]
ScoreMode = Literal["dense", "sparse", "multivector", "weighted"]
Priority = Literal["interactive", "bulk"]
Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[int, Meta(ge=0)]
Weights = Annotated[list[Annotated[float, Meta(ge=0)]], Meta(min_length=3, max_length=3)]
Name = Annotated[str, Meta(max_length=200)]


class Item(Struct, frozen=True):
    """A query or a document. Text models require `text`, which may be empty.

    On score, late-interaction models accept `multivector` instead: token vectors [tokens, width].
    """

    id: str | None = None
    text: str | None = None
    metadata: SkippedMap = None
    multivector: Skipped = None  # `arrays.Encoded`, whose array is built when the model is known
    images: Skipped = None  # True if present, like the fields below
    audio: Skipped = None
    video: Skipped = None
    document: Skipped = None


def is_plain(item: Item) -> bool:
    """Whether an item has neither vectors nor another medium than text."""
    return item.multivector is item.images is item.audio is item.video is item.document is None


Items = Annotated[list[Item], Meta(min_length=1, max_length=100_000)]


class Options(Struct, frozen=True):
    """Options of a request. Any other key is ignored and reported in `warnings`."""

    profile: Annotated[Name | None, Meta(description="Name of one of the model's option sets")] = None
    instruction: str | None = None
    max_seq_length: Annotated[
        Positive | None, Meta(description="Maximum number of tokens per text or pair")
    ] = None
    top_n: Annotated[Positive | None, Meta(description="score: return only the best n entries")] = None
    lora: Annotated[
        Name | None, Meta(description="Name of a LoRA adapter; equal to MODEL:ADAPTER as the model id")
    ] = None
    lora_id: Annotated[Name | None, Meta(description="Alias of `lora`")] = None
    is_query: Annotated[bool | None, Meta(description="encode: the texts are queries")] = None
    priority: Annotated[
        Priority | None,
        Meta(description="Lane in the queue; default: bulk for requests of more than four batches"),
    ] = None
    deadline_ms: Annotated[
        Positive | None,
        Meta(description="Milliseconds in which the caller can use the answer; longer requests are rejected"),
    ] = None
    dimensions: Annotated[
        Positive | None,
        Meta(description="encode: truncate vectors to their first dimensions (Matryoshka)"),
    ] = None
    normalize: Annotated[
        Literal["none", "sigmoid", "calibrated"] | None,
        Meta(
            description="score: raw values, the sigmoid of logits, or calibrated probabilities; default: the "
            "checkpoint's activation"
        ),
    ] = None
    score_mode: Annotated[
        ScoreMode | None,
        Meta(description="score, bge-m3 only: the similarity; default: weighted mean of all three"),
    ] = None
    score_weights: Annotated[
        Weights | None,
        Meta(description="score, bge-m3 only: weights of dense, sparse and multivector"),
    ] = None
    cutoff_layer: Annotated[
        Positive | None,
        Meta(description="score, models with several heads only: layer whose hidden states are scored"),
    ] = None
    compress_ratio: Annotated[
        Positive | None,
        Meta(description="score: token compression, which is not supported; 1 or absent"),
    ] = None
    return_documents: Annotated[
        bool | None, Meta(description="score: add each document's text to its entry")
    ] = None
    return_logits: Annotated[bool | None, Meta(description="score: add each raw logit to its entry")] = None
    long_document: Annotated[
        Literal["truncate", "chunk", "refuse"] | None,
        Meta(
            description="score: truncate a document that is too long (default), score overlapping windows "
            "of it, or reject the request"
        ),
    ] = None
    chunk_overlap: Annotated[
        NonNegative | None, Meta(description="score: tokens shared by adjacent windows")
    ] = None
    max_document_tokens: Annotated[
        Positive | None, Meta(description="score: maximum number of tokens of each document")
    ] = None
    aggregate: Annotated[
        Literal["max", "mean"] | None,
        Meta(description="score: how the scores of windows are combined; default: max"),
    ] = None
    token_scores: Annotated[
        bool | None,
        Meta(description="inspect, late interaction only: run the model and add the similarities of tokens"),
    ] = None


class Profile(Options, frozen=True, forbid_unknown_fields=True):
    """A named set of options in a model's catalog entry. A request's own options take precedence."""

    def __post_init__(self) -> None:
        if self.profile is not None:
            raise ValueError("a profile cannot name another profile")


class ScoreRequest(Struct, frozen=True):
    """Body of `POST /v1/score/{model}`: a query and the documents to rank."""

    query: Item
    items: Items
    instruction: str | None = None
    options: SkippedMap = None  # a dict, of at most 64 KiB in the body


class Document(Struct, frozen=True):
    """The text of a document, returned with `options.return_documents`."""

    text: str


class ChunkSpan(Struct, frozen=True):
    """A window of a long document: characters [start, end), and its index among `count` windows."""

    start: int
    end: int
    index: int
    count: int


class ScoreEntry(Struct, frozen=True):
    """The score of one document. `rank` starts at 0; ties keep the order of the request."""

    item_id: str
    score: float
    rank: int
    truncated: Annotated[
        bool | UnsetType, Meta(description="Present and true when the text was truncated")
    ] = UNSET
    logit: Annotated[float | UnsetType, Meta(description="Raw value, with `options.return_logits`")] = UNSET
    chunk: Annotated[
        ChunkSpan | UnsetType, Meta(description="The best window, with `long_document: chunk`")
    ] = UNSET
    document: Annotated[
        Document | UnsetType, Meta(description="The text, with `options.return_documents`")
    ] = UNSET


class Usage(Struct, frozen=True):
    """Number of tokens in all sequences of a request, without padding.

    Tokens whose computation is shared or cached are counted in full: a prefix that all prompts start with counts in
    every prompt, and a document in the document cache counts like any other.
    """

    input_tokens: int


class StageReport(Struct, frozen=True):
    """One stage of a cascade in a response: its tokens, and the documents that the next stage did not read."""

    model: str
    input_tokens: Annotated[int, Meta(description="0 if the stage had nothing to prune and did not run")]
    pruned: Annotated[
        list[str], Meta(description="`item_id` of the documents, by descending relevance for this stage")
    ]


class ScoreResponse(Struct, frozen=True):
    """Documents ordered by descending relevance."""

    model: str
    query_id: str | None
    scores: list[ScoreEntry]
    usage: Usage
    score_type: Annotated[ScoreType, Meta(description="What `score` measures")]
    query_truncated: Annotated[
        bool | UnsetType,
        Meta(description="Present and true when the query was truncated, in any pair of a cross-encoder"),
    ] = UNSET
    warnings: list[str] | UnsetType = UNSET
    top_n: Annotated[
        int | UnsetType,
        Meta(description="The `top_n` of the request or its profile, if it left documents out"),
    ] = UNSET
    stages: Annotated[
        list[StageReport] | UnsetType,
        Meta(description="Of a cascade: `scores` has the documents of the last stage only"),
    ] = UNSET


class InspectedPassage(Struct, frozen=True):
    """One document of a block, which a listwise reranker reads as one sequence."""

    item_id: str
    position: Annotated[int, Meta(description="Index of its readout token")]
    truncated: bool


class QueryTokens(Struct, frozen=True):
    """The query tokens that are compared with tokens of documents: the rows of `TokenScores.similarities`."""

    positions: Annotated[list[int], Meta(description="Indices in the tokens of the query")]
    weights: Annotated[list[float], Meta(description="Weight of each token; 1 for ColBERT")]


class TokenScores(Struct, frozen=True):
    """How the tokens of a query match those of a document or window.

    `score` is the sum over query tokens of weight × largest similarity, plus `pooled`.
    """

    positions: Annotated[list[int], Meta(description="Indices in `tokens` of the tokens that are compared")]
    similarities: Annotated[
        list[list[float]],
        Meta(description="A row per query token, a column per position; rounded to six digits"),
    ]
    score: Annotated[float, Meta(description="The raw score of the text or window")]
    pooled: Annotated[
        float | UnsetType, Meta(description="Part of the score from pooled vectors (embedded model)")
    ] = UNSET


class InspectedText(Struct, frozen=True):
    """One sequence of tokens as the model reads it."""

    item_id: Annotated[
        str | None, Meta(description="Null for a query that is a sequence of its own, and for a block")
    ]
    text: Annotated[str, Meta(description="The tokens decoded to text, special tokens included")]
    token_ids: list[int]
    tokens: list[str]
    readout: Annotated[
        Literal["first", "last", "all", "marked"],
        Meta(
            description="Tokens whose hidden states produce the result; marked: one token per passage and "
            "one of the query"
        ),
    ]
    truncated: bool
    position: Annotated[
        int | UnsetType, Meta(description="Index of the readout token; of a block: the query's")
    ] = UNSET
    passages: Annotated[list[InspectedPassage] | UnsetType, Meta(description="Documents of a block")] = UNSET
    read_to: Annotated[int | UnsetType, Meta(description="Characters read of a truncated text")] = UNSET
    chunk: ChunkSpan | UnsetType = UNSET
    token_scores: Annotated[
        TokenScores | UnsetType, Meta(description="With `options.token_scores`, of a document")
    ] = UNSET


class InspectResponse(Struct, frozen=True):
    """The sequences that a score request with the same body would send through the model."""

    model: str
    max_seq_length: int
    query_truncated: bool
    items: list[InspectedText]
    query: InspectedText | UnsetType = UNSET
    query_tokens: Annotated[QueryTokens | UnsetType, Meta(description="With `options.token_scores`")] = UNSET


class EncodeParams(Struct, frozen=True):
    """Parameters of an encode request."""

    output_types: Annotated[list[OutputType], Meta(max_length=10)] | None = None
    output_dtype: OutputDtype | None = None
    instruction: str | None = None
    is_query: bool | None = None
    options: SkippedMap = None  # as in `ScoreRequest`


class EncodeRequest(Struct, frozen=True):
    """Body of `POST /v1/encode/{model}`: the texts to encode."""

    items: Items
    params: EncodeParams | None = None


class DenseVector(Struct, frozen=True):
    """One vector per text: `values` has shape [dims]."""

    dims: int
    dtype: str
    values: Any


class SparseVector(Struct, frozen=True):
    """The non-zero entries by ascending index; `dims` is the size of the vocabulary."""

    dims: int
    dtype: str
    indices: Any
    values: Any


class MultiVector(Struct, frozen=True):
    """One vector per token: `values` has shape [num_tokens, token_dims]."""

    token_dims: int
    num_tokens: int
    dtype: str
    values: Any


class EncodedItem(Struct, frozen=True):
    """The vectors of one text."""

    id: str | UnsetType = UNSET
    dense: DenseVector | UnsetType = UNSET
    sparse: SparseVector | UnsetType = UNSET
    multivector: MultiVector | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET


class Timing(Struct, frozen=True):
    """Milliseconds that the server spent on a request."""

    total_ms: float
    queue_ms: float
    tokenization_ms: float
    inference_ms: float


class EncodeResponse(Struct, frozen=True):
    """One result per text, in the order of the request."""

    model: str
    items: list[EncodedItem]
    timing: Timing
    usage: Usage
    warnings: list[str] | UnsetType = UNSET
