"""Types of arguments and results: dicts with known keys.

They are TypedDicts: `Item(id="a", text="x")` is the dict `{"id": "a", "text": "x"}`. Dict literals are accepted,
and results are read as `result["scores"][0]["item_id"]`. Keys from newer servers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

OutputType: TypeAlias = Literal["dense", "sparse", "multivector"]
OutputDtype: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


class Item(TypedDict, total=False):
    """A query or a document. `None` and absent mean the same; `""` is valid text; ids need not be unique."""

    id: str | None
    text: str | None
    multivector: NDArray[Any] | Sequence[Sequence[float]] | None  # [tokens, width]
    metadata: Mapping[str, Any] | None
    # Other modalities, which text models reject with a RequestError.
    images: Sequence[Any] | None
    audio: Any
    video: Any
    document: Any


ItemLike: TypeAlias = Item | Mapping[str, Any]


class Usage(TypedDict):
    """The number of tokens that a request used."""

    input_tokens: int


class ChunkSpan(TypedDict):
    """A window of a text: characters [start, end), and its index among `count` windows."""

    start: int
    end: int
    index: int
    count: int


class Document(TypedDict):
    """The candidate itself."""

    text: str


class ScoreEntry(TypedDict):
    """A document's score and rank."""

    item_id: str | None  # the item's id, else "item-{index}"
    score: float  # higher is more relevant; the scale depends on the model
    rank: int  # 0 is most relevant
    truncated: NotRequired[bool]  # True when the text was truncated to the model's window
    logit: NotRequired[float]  # the raw value, with options return_logits
    chunk: NotRequired[ChunkSpan]  # a long document's best window, with options long_document "chunk"
    document: NotRequired[Document]  # with options return_documents


class StageReport(TypedDict):
    """A stage of a cascade: `pruned` has the `item_id` of the documents that the next stage did not read."""

    model: str
    input_tokens: int  # 0 if the stage had nothing to prune
    pruned: list[str]  # by descending relevance for this stage


class ScoreResult(TypedDict):
    """`scores` is sorted by relevance; ties keep the order in which the items were passed."""

    model: str
    query_id: NotRequired[str | None]
    scores: list[ScoreEntry]
    usage: NotRequired[Usage]
    score_type: NotRequired[str]  # logit, probability, maxsim or cosine
    query_truncated: NotRequired[bool]  # True when the query was truncated, in any pair of a cross-encoder
    warnings: NotRequired[list[str]]  # unknown options, truncated texts
    top_n: NotRequired[int]  # of the request or its profile, if it left documents out
    stages: NotRequired[list[StageReport]]  # of a cascade; `scores` has the documents of the last stage only
    request_id: NotRequired[str]  # X-SIE-Request-ID, which identifies the request in the server's logs


class SparseVector(TypedDict):
    """The non-zero entries of a vector; both arrays have shape [entries]."""

    indices: NDArray[Any]
    values: NDArray[Any]


class EncodeResult(TypedDict, total=False):
    """The requested vectors of an item."""

    id: str | None
    dense: NDArray[Any]  # [width]; packed bits for binary and ubinary
    sparse: SparseVector
    multivector: NDArray[Any]  # [tokens, width]
    truncated: bool  # True when the text was truncated to the model's window
    request_id: str


class ModelInfo(TypedDict):
    """The server's description of a model."""

    name: str
    loaded: bool
    inputs: list[str]
    outputs: list[str]
    dims: NotRequired[Any]
    state: NotRequired[str]  # available, loading, loaded, unloading or failed
    last_error: NotRequired[Any]
    max_sequence_length: NotRequired[int | None]  # tokens
    stages: NotRequired[Any]  # of a cascade: its models, and how many documents each keeps
    profiles: NotRequired[Any]
    revision: NotRequired[str | None]
