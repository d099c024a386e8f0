"""Model information, and requests and responses of the admin routes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

ModelState = Literal["available", "loading", "loaded", "unloading", "failed"]


class LoadProgress(Struct, frozen=True):
    """Progress of a load. Bytes are those of the files during `fetch`, then those of the model's tensors."""

    phase: Annotated[
        Literal["fetch", "room", "load", "measure", "probe", "replay"],
        Meta(
            description="Download the files, wait for memory, read the weights, measure the batch size, "
            "run test requests, replay requests before a swap"
        ),
    ]
    seconds: Annotated[float, Meta(description="Seconds since the load began")]
    bytes_done: int
    bytes_total: Annotated[int | None, Meta(description="Null until known")]


class AdapterInfo(Struct, frozen=True):
    """A LoRA adapter of a model. An adapter that is not loaded is loaded on first use."""

    name: str
    source: str
    loaded: bool
    progress: Annotated[LoadProgress | None, Meta(description="Progress of a running download or load")] = (
        None
    )


class StageInfo(Struct, frozen=True):
    """A stage of a cascade."""

    model: str
    keep: Annotated[
        int | None, Meta(description="Documents that the next stage reads; null for the last stage")
    ] = None


class ModelEntry(Struct, frozen=True, kw_only=True):
    """A model in OpenAI's format, with the fields that vLLM, NVIDIA NIM and Xinference add.

    Sources: platform.openai.com/docs/api-reference/models; `ModelCard` of vLLM (vllm/entrypoints/openai), which NIM's
    clients read `root` of: a model without a base model has its own id there; `model_type` of Xinference's clients.
    """

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="When the server started, in seconds since 1970")]
    owned_by: Annotated[str, Meta(description="The part of the id before the slash")]
    root: Annotated[str, Meta(description="The model's id; of an alias or an adapter, that of its model")]
    parent: Annotated[str | None, Meta(description="The model, if `id` is MODEL:ADAPTER")] = None
    max_model_len: Annotated[int | None, Meta(description="Equal to `max_sequence_length`")]
    model_type: Annotated[
        Literal["rerank", "embedding"] | None,
        Meta(description="`rerank` if the model scores, null if unknown"),
    ]


class ModelInfo(ModelEntry, frozen=True):
    """A model that the server knows, loaded or not."""

    name: str
    inputs: list[str]
    outputs: list[str]
    dims: dict[str, int]
    loaded: bool
    state: ModelState
    last_error: str | None
    max_sequence_length: int | None
    profiles: list[str]
    revision: str | None
    license: str | None = None
    description: str | None = None
    compat: Annotated[
        bool, Meta(description="Runs through the transformers library: same scores, padded and slower")
    ] = False
    warning: Annotated[
        str | None, Meta(description="A reason to doubt the scores, or an update that is lacking")
    ] = None
    source: Annotated[str | None, Meta(description="Directory or hub id of its weights")] = None
    pinned: Annotated[bool, Meta(description="Never unloaded to free memory or for being idle")] = False
    memory_bytes: Annotated[int, Meta(description="Bytes of its tensors, all versions together")] = 0
    progress: Annotated[LoadProgress | None, Meta(description="Progress of a running load or swap")] = None
    adapters: list[AdapterInfo] = []
    aliases: Annotated[list[str], Meta(description="Other names that requests may use for this model")] = []
    stages: Annotated[list[StageInfo], Meta(description="Of a cascade: its models, the first one first")] = []


class ModelList(Struct, frozen=True):
    """All models: `models` for SIE clients, `data` for OpenAI clients, in the same order."""

    models: list[ModelInfo]
    data: list[ModelEntry]
    object: Literal["list"] = "list"


ModelName = Annotated[str, Meta(min_length=1, max_length=200)]
Source = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1000,
        description="Hub id, or a directory of the server under models_dir or source_roots",
    ),
]
# in Python, `$` alone would also match before a final newline
ADAPTER_NAME = r"^[\w.-]+(?!\n)$"
AdapterName = Annotated[
    str, Meta(min_length=1, max_length=100, pattern=ADAPTER_NAME, description="Name for `options.lora`")
]
Revision = Annotated[
    str, Meta(min_length=1, max_length=200, description="Branch, tag or commit of a hub repository")
]


class AdminLoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/load`: the model to load now. With `source`, the id may be new to the server."""

    model: ModelName
    source: Source | None = None
    revision: Revision | None = None
    pin: Annotated[bool | None, Meta(description="Pin the model (true) or unpin it (false)")] = None


class AdminUnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/unload`: the model to drain and unload. The next request loads it again."""

    model: ModelName


class AdminSwapRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/swap`: the model whose weights are replaced while it serves, and their source."""

    model: ModelName
    source: Source
    revision: Revision | None = None
    replay: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | None,
        Meta(description="Number of the last requests that both versions score before the switch"),
    ] = None
    max_difference: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="With `replay`: switch only if the versions differ by this at most; null: report only"
        ),
    ] = None


class AdapterLoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/adapters/load`: the LoRA adapter to load now, and the name that requests use for it."""

    model: ModelName
    adapter: AdapterName
    source: Source


class AdapterUnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v1/admin/adapters/unload`: the adapter to unload. Its name is removed unless it was configured."""

    model: ModelName
    adapter: AdapterName


class ReplicaReport(Struct, frozen=True):
    """The effect of an admin request on one replica of a cluster."""

    replica: str
    state: ModelState | None = None
    error: Annotated[str | None, Meta(description="Why the replica does not follow yet")] = None


class ReplayRefusal(Struct, frozen=True):
    """Requests that the new version does not answer."""

    reason: str
    requests: int


class ReplayReport(Struct, frozen=True):
    """How differently the new version answers requests that the old one has answered. Not which one is better.

    Figures are means over requests, null if there is nothing to compare.
    """

    requests: Annotated[int, Meta(description="Scored by both versions")]
    refused: Annotated[list[ReplayRefusal], Meta(description="The most frequent reasons")]
    refused_requests: Annotated[int, Meta(description="Not answered by the new version, for any reason")]
    difference: Annotated[
        float | None,
        Meta(
            description="Share of document pairs in another order, from 0 to 1; a refused request counts as 1"
        ),
    ]
    kendall_tau: Annotated[float | None, Meta(description="1 - 2 · share of pairs in another order")]
    top10_overlap: Annotated[float | None, Meta(description="Share of the best ten documents in common")]
    score_shift: Annotated[float | None, Meta(description="New score - old score")]
    largest_shift: Annotated[float | None, Meta(description="Of one document, without its sign")]
    latency_ratio: Annotated[float | None, Meta(description="Device time of the new version / the old one's")]
    max_difference: float | None
    switched: bool
    notes: list[str]


class AdminAnswer(Struct, frozen=True):
    """State of the model after an admin request."""

    model: str
    state: ModelState
    source: str
    revision: str | None
    pinned: bool
    memory_bytes: int
    seconds: Annotated[float, Meta(description="Duration of the request")]
    adapters: list[AdapterInfo] = []
    replicas: Annotated[list[ReplicaReport] | UnsetType, Meta(description="In a cluster: each replica")] = (
        UNSET
    )
    replay: Annotated[ReplayReport | UnsetType, Meta(description="Of a swap with `replay`")] = UNSET
