"""What callers pass in and get back: plain dicts with known keys.

They are TypedDicts, so `Item(id="a", text="x")` is the dict `{"id": "a", "text": "x"}`, a dict literal is as
good, and results are read as `result["scores"][0]["item_id"]`. Keys the server adds later are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

OutputType: TypeAlias = Literal["dense", "sparse", "multivector"]
OutputDtype: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


class Item(TypedDict, total=False):
    """A query or a document. `None` and absent mean the same; `""` is legal text; ids need not be unique."""

    id: str | None
    text: str | None
    multivector: NDArray[Any] | Sequence[Sequence[float]] | None  # [tokens, width]
    metadata: Mapping[str, Any] | None
    # Other modalities: text models refuse them with a RequestError that says so.
    images: Sequence[Any] | None
    audio: Any
    video: Any
    document: Any


ItemLike: TypeAlias = Item | Mapping[str, Any]


class Usage(TypedDict):
    """What a request cost."""

    input_tokens: int


class ChunkSpan(TypedDict):
    """Characters [start, end) of the text, and which window of `count` they are."""

    start: int
    end: int
    index: int
    count: int


class Document(TypedDict):
    """The candidate itself."""

    text: str


class ScoreEntry(TypedDict):
    """One document's place in the ranking."""

    item_id: str | None  # the item's id, else "item-{index}"
    score: float  # higher is more relevant; the scale is the model's
    rank: int  # 0 is most relevant
    truncated: NotRequired[bool]  # True when the text was cut to the model's window
    logit: NotRequired[float]  # the raw value, with options return_logits
    chunk: NotRequired[ChunkSpan]  # a long document's best window, with options long_document "chunk"
    document: NotRequired[Document]  # with options return_documents


class ScoreResult(TypedDict):
    """`scores` is sorted by relevance; ties keep the order in which the items were passed."""

    model: str
    query_id: NotRequired[str | None]
    scores: list[ScoreEntry]
    usage: NotRequired[Usage]
    score_type: NotRequired[str]  # logit, probability, maxsim or cosine
    warnings: NotRequired[list[str]]  # unknown options, cut texts
    request_id: NotRequired[str]  # from X-SIE-Request-ID: quote it when asking about a request


class SparseVector(TypedDict):
    """The non-zero entries of a vector; both arrays have shape [entries]."""

    indices: NDArray[Any]
    values: NDArray[Any]


class EncodeResult(TypedDict, total=False):
    """One item's vectors, of the kinds asked for."""

    id: str | None
    dense: NDArray[Any]  # [width]; packed bits for binary and ubinary
    sparse: SparseVector
    multivector: NDArray[Any]  # [tokens, width]
    request_id: str


class ModelInfo(TypedDict):
    """What the server says about a model it can serve. Asking never loads it."""

    name: str
    loaded: bool
    inputs: list[str]
    outputs: list[str]
    dims: NotRequired[Any]
    state: NotRequired[str]  # available, loading, loaded, unloading or failed
    last_error: NotRequired[Any]
    max_sequence_length: NotRequired[int | None]  # tokens
    profiles: NotRequired[Any]
    revision: NotRequired[str | None]
