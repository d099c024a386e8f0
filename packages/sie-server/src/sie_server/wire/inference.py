"""Score, encode and inspect: requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

OutputType = Literal["dense", "sparse", "multivector"]
OutputDtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
ScoreType = Literal["logit", "probability", "maxsim", "cosine", "dot"]


class Item(Struct, frozen=True):
    """A query or a candidate. Text models need `text`; the empty string is legal text.

    On score, late-interaction models also take `multivector` in its place: token vectors [tokens, width].
    """

    id: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    multivector: Any = None
    images: Any = None
    audio: Any = None
    video: Any = None
    document: Any = None


class Options(Struct, frozen=True):
    """Options of one request. A key that is not listed here is ignored and reported in `warnings`."""

    profile: Annotated[str | None, Meta(description="One of the model's named sets of options")] = None
    instruction: str | None = None
    max_seq_length: Annotated[int, Meta(ge=1, description="Tokens a model reads per text or pair")] | None = (
        None
    )
    top_n: Annotated[int, Meta(ge=1, description="Return only the best n entries")] | None = None
    lora: Annotated[
        str | None,
        Meta(description="LoRA adapter to read with; the same as MODEL:ADAPTER in place of the model's id"),
    ] = None
    lora_id: Annotated[str | None, Meta(description="Another name of `lora`")] = None
    is_query: Annotated[bool, Meta(description="encode: the texts are queries")] | None = None
    dimensions: (
        Annotated[int, Meta(ge=1, description="encode: cut vectors to their first dimensions (Matryoshka)")]
        | None
    ) = None
    normalize: (
        Annotated[
            Literal["none", "sigmoid"],
            Meta(description="score: raw logits, or their sigmoid; default: the checkpoint's activation"),
        ]
        | None
    ) = None
    score_mode: (
        Annotated[
            Literal["dense", "sparse", "multivector", "weighted"],
            Meta(description="score, bge-m3 only: which similarity; default: the weighted mean of all"),
        ]
        | None
    ) = None
    score_weights: (
        Annotated[
            list[Annotated[float, Meta(ge=0)]],
            Meta(min_length=3, max_length=3, description="score, bge-m3: of dense, sparse, multivector"),
        ]
        | None
    ) = None
    cutoff_layer: (
        Annotated[
            int,
            Meta(ge=1, description="score, models with several heads only: read the score after this layer"),
        ]
        | None
    ) = None
    compress_ratio: (
        Annotated[
            int, Meta(ge=1, description="score: token compression, which is not served: 1, or leave it out")
        ]
        | None
    ) = None
    return_documents: Annotated[bool, Meta(description="score: each entry carries its text")] | None = None
    return_logits: Annotated[bool, Meta(description="score: each entry carries its raw logit")] | None = None
    long_document: (
        Annotated[
            Literal["truncate", "chunk", "refuse"],
            Meta(
                description="score: cut what is too long (default), score it in overlapping windows, or refuse it"
            ),
        ]
        | None
    ) = None
    chunk_overlap: (
        Annotated[int, Meta(ge=0, description="score: tokens that neighbouring windows share")] | None
    ) = None
    max_document_tokens: (
        Annotated[int, Meta(ge=1, description="score: tokens of each document that are read at most")] | None
    ) = None
    aggregate: (
        Annotated[Literal["max", "mean"], Meta(description="score: how windows make a document's score")]
        | None
    ) = None


class Profile(Options, frozen=True, forbid_unknown_fields=True):
    """Options under a name, as a model's catalog entry lists them; a request's own options beat them."""

    def __post_init__(self) -> None:
        if self.profile is not None:
            raise ValueError("a profile cannot name another profile")


class ScoreRequest(Struct, frozen=True):
    """`POST /v1/score/{model}`: one query, the candidates to put in order."""

    query: Item
    items: Annotated[list[Item], Meta(min_length=1)]
    instruction: str | None = None
    options: dict[str, Any] | None = None


class Document(Struct, frozen=True):
    """The candidate itself, when `options.return_documents` asked for it."""

    text: str


class ChunkSpan(Struct, frozen=True):
    """The window of a long document that scored best: characters [start, end), and which of `count` it is."""

    start: int
    end: int
    index: int
    count: int


class ScoreEntry(Struct, frozen=True):
    """One candidate's place. `rank` counts from 0; ties keep the order of the request."""

    item_id: str
    score: float
    rank: int
    truncated: Annotated[bool | UnsetType, Meta(description="Present and true when the text was cut")] = UNSET
    logit: Annotated[float | UnsetType, Meta(description="The raw value, with `options.return_logits`")] = (
        UNSET
    )
    chunk: ChunkSpan | UnsetType = UNSET
    document: Document | UnsetType = UNSET


class Usage(Struct, frozen=True):
    """Tokens of all sequences the model reads, without padding.

    A prompt's start that all pairs of a request share is computed once, and counted in every pair all the same; so are
    documents whose token vectors are cached: what a request costs does not depend on how the server saves work.
    """

    input_tokens: int


class ScoreResponse(Struct, frozen=True):
    """Candidates in order of relevance, the best first."""

    model: str
    query_id: str | None
    scores: list[ScoreEntry]
    usage: Usage
    score_type: Annotated[ScoreType, Meta(description="What kind of number `score` is")]
    warnings: list[str] | UnsetType = UNSET


class InspectedPassage(Struct, frozen=True):
    """One document of a block, which a listwise reranker reads as one sequence."""

    item_id: str
    position: Annotated[int, Meta(description="Place of its read-out token, from 0")]
    truncated: bool


class InspectedText(Struct, frozen=True):
    """One sequence as the model reads it."""

    item_id: Annotated[
        str | None, Meta(description="Null for a query that is read by itself, and for a block of documents")
    ]
    text: Annotated[str, Meta(description="The tokens as text, special ones included")]
    token_ids: list[int]
    tokens: list[str]
    readout: Annotated[
        Literal["first", "last", "all", "marked"],
        Meta(
            description="The tokens whose hidden states make the result; marked: one per passage and the query's"
        ),
    ]
    truncated: bool
    position: Annotated[
        int | UnsetType, Meta(description="Place of the read-out token (of a block: the query's), from 0")
    ] = UNSET
    passages: Annotated[list[InspectedPassage] | UnsetType, Meta(description="Of a block")] = UNSET
    read_to: Annotated[int | UnsetType, Meta(description="Characters of a cut text that are read")] = UNSET
    chunk: ChunkSpan | UnsetType = UNSET


class InspectResponse(Struct, frozen=True):
    """`POST /v1/inspect/{model}`: what a score request with this body would put through the model."""

    model: str
    max_seq_length: int
    query_truncated: bool
    items: list[InspectedText]
    query: InspectedText | UnsetType = UNSET


class EncodeParams(Struct, frozen=True):
    """What `encode` should give."""

    output_types: list[OutputType] | None = None
    output_dtype: OutputDtype | None = None
    instruction: str | None = None
    is_query: bool | None = None
    options: dict[str, Any] | None = None


class EncodeRequest(Struct, frozen=True):
    """`POST /v1/encode/{model}`: texts to turn into vectors."""

    items: Annotated[list[Item], Meta(min_length=1)]
    params: EncodeParams | None = None


class DenseVector(Struct, frozen=True):
    """One vector per text: `values` has shape [dims]."""

    dims: int
    dtype: str
    values: Any


class SparseVector(Struct, frozen=True):
    """The entries that are not 0, by rising index; `dims` is the size of the vocabulary they count in."""

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
    """The vectors of one input, in input order."""

    id: str | UnsetType = UNSET
    dense: DenseVector | UnsetType = UNSET
    sparse: SparseVector | UnsetType = UNSET
    multivector: MultiVector | UnsetType = UNSET
    truncated: bool | UnsetType = UNSET


class Timing(Struct, frozen=True):
    """Milliseconds spent on a request, as the server saw it."""

    total_ms: float
    queue_ms: float
    tokenization_ms: float
    inference_ms: float


class EncodeResponse(Struct, frozen=True):
    """Exactly one result per input, in input order."""

    model: str
    items: list[EncodedItem]
    timing: Timing
    usage: Usage
    warnings: list[str] | UnsetType = UNSET
