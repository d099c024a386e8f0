"""What a server says of its models, and what admin callers may ask of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

ModelState = Literal["available", "loading", "loaded", "unloading", "failed"]


class LoadProgress(Struct, frozen=True):
    """How far a load is; bytes are those of the files while they are fetched, then those of the model's tensors."""

    phase: Annotated[
        Literal["fetch", "room", "load", "measure", "probe"],
        Meta(description="Download, wait for memory, read the weights, measure the batch size, try it out"),
    ]
    seconds: Annotated[float, Meta(description="Since the load began")]
    bytes_done: int
    bytes_total: Annotated[int | None, Meta(description="Null until it is known")]


class AdapterInfo(Struct, frozen=True):
    """A LoRA adapter a model may be asked for; one that is not loaded is on first use."""

    name: str
    source: str
    loaded: bool


class ModelInfo(Struct, frozen=True):
    """One model the server knows, loaded or not."""

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
        bool, Meta(description="Runs through the transformers library: right, but padded and slower")
    ] = False
    source: Annotated[str | None, Meta(description="Directory or hub id of its weights")] = None
    pinned: Annotated[bool, Meta(description="Never unloaded to make room or for being idle")] = False
    memory_bytes: Annotated[int, Meta(description="What its tensors hold, all versions together")] = 0
    progress: Annotated[LoadProgress | None, Meta(description="Of a load or swap that is running")] = None
    adapters: list[AdapterInfo] = []


class ModelList(Struct, frozen=True):
    """`GET /v1/models`, for SIE clients (`models`) and OpenAI-shaped ones (`data`)."""

    models: list[ModelInfo]
    data: list[dict[str, Any]]
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
AdapterName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[\w.-]+(?!\n)$",  # in Python a `$` alone would let a last newline be
        description="Name for `options.lora`",
    ),
]
Revision = Annotated[str, Meta(min_length=1, max_length=200, description="Branch, tag or commit of a hub id")]


class AdminLoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/admin/load`: load a model now; with `source`, also one that is not known yet."""

    model: ModelName
    source: Source | None = None
    revision: Revision | None = None
    pin: Annotated[bool | None, Meta(description="Keep it loaded, or (false) no longer")] = None


class AdminUnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/admin/unload`: let running requests finish and free the memory; the next request loads it again."""

    model: ModelName


class AdminSwapRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/admin/swap`: replace the weights of a model between two requests."""

    model: ModelName
    source: Source
    revision: Revision | None = None


class AdapterLoadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/admin/adapters/load`: load a LoRA adapter now, under a name that requests may use from then on."""

    model: ModelName
    adapter: AdapterName
    source: Source


class AdapterUnloadRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/admin/adapters/unload`: free it; unknown from then on, unless the server was started with it."""

    model: ModelName
    adapter: AdapterName


class AdminAnswer(Struct, frozen=True):
    """Where the model stands after an admin request."""

    model: str
    state: ModelState
    source: str
    revision: str | None
    pinned: bool
    memory_bytes: int
    seconds: Annotated[float, Meta(description="How long it took")]
    adapters: list[AdapterInfo] = []
