"""All options of the server.

Flags, `SIE_*` variables, file keys and the documentation of all three come from the fields of `ServerConfig`. A
`Secret` field has no flag, because every user of a machine can read its command lines.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from sie_server.config.cluster import ClusterConfig

DEFAULT_MODEL = "sie/mini-en"
NAME_LENGTH = 200  # of ids of models and profiles, and of names of adapters
LONGEST_S = 1e6  # of any time, eleven days; timers of the system do not take every number


class Secret:
    """A text that never appears in a repr, a message or JSON."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError("Expected `str`")
        self.value = value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


Port = Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 picks a free one")]


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """All options. Each field is a `SIE_*` variable, a key of the file and, unless it is a secret, a flag."""

    host: Annotated[str, Meta(description="Address to listen on")] = "127.0.0.1"
    port: Port = 8080
    model: Annotated[
        tuple[str, ...],
        Meta(
            description="Model to load at start: ID, ID=DIRECTORY or ID=HUB_ID, @REVISION after a hub id; "
            "may be repeated"
        ),
    ] = (DEFAULT_MODEL,)
    models_dir: Annotated[
        str | None,
        Meta(description="Directory of models: subdirectories with a config.json, and *.yaml files"),
    ] = None
    models_dir_poll_s: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_S,
            description="Seconds between scans of models_dir and of adapters in use for changes; 0: scan only at start",
        ),
    ] = 2.0
    adapter: Annotated[
        tuple[str, ...],
        Meta(
            description="LoRA adapter of a model: MODEL:NAME=DIRECTORY or MODEL:NAME=HUB_ID; "
            "loaded on first use; may be repeated"
        ),
    ] = ()
    max_adapters: Annotated[
        int, Meta(ge=1, description="LoRA adapters kept per model; the least recently used is evicted")
    ] = 16
    source_roots: Annotated[
        tuple[str, ...],
        Meta(
            description="Directory from which admin callers may load, in addition to models_dir; may be repeated"
        ),
    ] = ()
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="Device that runs the models")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        Meta(
            description="Number format of the encoder; auto: bfloat16 if the hardware multiplies it fast, else "
            "float16 on a GPU and float32 on a CPU, never int8"
        ),
    ] = "auto"
    offline: Annotated[
        bool, Meta(description="Never contact the model hub; use only directories and the hub's cache")
    ] = False
    threads: Annotated[
        int,
        Meta(
            ge=0,
            description="CPU threads of all device threads together; 0: one per core that the process may use, or one "
            "with a GPU",
        ),
    ] = 0
    device_threads: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"],
        Meta(
            description="Forward passes that run at once on a CPU, each with its part of `threads`; auto: one per 4 "
            "cores from 8 cores on, else 1; with a GPU it is 1"
        ),
    ] = "auto"
    tokenizer_threads: Annotated[int, Meta(ge=1, description="Threads that tokenise")] = 4
    batch_tokens: Annotated[
        int, Meta(ge=0, description="Tokens in one forward pass; 0: measured when the model loads")
    ] = 0
    memory_budget_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for the weights of loaded models, in MiB; 0: 70 % of the machine's, 80 % of a GPU's",
        ),
    ] = 0
    idle_unload_s: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_S,
            description="Unload a model after this many seconds without a request; 0: never",
        ),
    ] = 0
    document_cache_mb: Annotated[
        int,
        Meta(
            ge=0,
            description="Memory for the document cache of late-interaction models, in MiB; 0: no cache",
        ),
    ] = 256
    replay_buffer: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="Last score requests that are kept per model, with their texts, in memory only, for "
            "`sie-server admin swap --replay`; 0: none",
        ),
    ] = 0
    replay_buffer_mb: Annotated[
        int, Meta(ge=1, description="Memory for the kept requests of all models, in MiB")
    ] = 64
    max_queue_tokens: Annotated[
        int,
        Meta(
            ge=1,
            description="Tokens that may wait in the queue; further requests are answered with QUEUE_FULL",
        ),
    ] = 4_000_000
    max_wait_s: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_S,
            description="Longest time that a request may wait for the device, in seconds; a request whose estimated "
            "wait is longer is answered with QUEUE_FULL at once",
        ),
    ] = 20.0
    max_chunks: Annotated[
        int, Meta(ge=1, description="Maximum number of windows per document (options.long_document: chunk)")
    ] = 64
    max_body_mb: Annotated[int, Meta(ge=1, description="Largest request body, in MiB")] = 64
    max_bodies_mb: Annotated[
        int,
        Meta(
            ge=1,
            description="Memory for all request bodies and unsent responses together, in MiB; further bodies are "
            "answered with QUEUE_FULL",
        ),
    ] = 256
    body_timeout_s: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_S,
            description="Seconds that a client may take to send a body or to read a response, plus one second per "
            "64 KiB",
        ),
    ] = 30.0
    header_timeout_s: Annotated[
        float,
        Meta(
            gt=0, le=LONGEST_S, description="Seconds that a client may take to send the headers of a request"
        ),
    ] = 10.0
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            description="Open connections; if all are busy, further requests are answered with QUEUE_FULL, except "
            "those for health routes",
        ),
    ] = 1000
    load_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=LONGEST_S,
            description="Seconds that a request waits for its model before it is answered with MODEL_LOADING",
        ),
    ] = 20.0
    load_stall_s: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_S,
            description="Seconds without progress after which the load of a model is given up",
        ),
    ] = 600.0
    device_stall_s: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_S,
            description="Seconds that one step of the device may take before /livez fails and the server ends",
        ),
    ] = 300.0
    drain_s: Annotated[
        float, Meta(ge=0, le=LONGEST_S, description="Seconds that a shutdown waits for accepted requests")
    ] = 60.0
    api_keys: Annotated[
        Secret | None,
        Meta(description="API keys: NAME:SCOPES:KEY or just KEY, separated by commas (docs/security.md)"),
    ] = None
    api_keys_file: Annotated[
        str | None, Meta(description="TOML file of API keys and their limits, in addition to `api_keys`")
    ] = None
    open_inference: Annotated[
        bool,
        Meta(
            description="With API keys: also answer requests without a key, except those to admin routes "
            "(docs/security.md)"
        ),
    ] = False
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origin of web pages that may call the server, `https://example.com`, "
            "`app://obsidian.md` or `*`; may be repeated"
        ),
    ] = ()
    root_path: Annotated[
        str,
        Meta(
            description="Prefix of paths that a proxy in front of the server keeps, such as `/sie` "
            "(docs/security.md#behind-a-proxy)"
        ),
    ] = ""
    playground: Annotated[
        bool, Meta(description="Serve a page to try the models at /, to browsers (docs/playground.md)")
    ] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest severity to log")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Meta(description="Form of the log: lines of text, or one JSON object per line"),
    ] = "text"
    access_log: Annotated[
        bool, Meta(description="Log one line per request, without its texts (docs/operating.md#the-log)")
    ] = True
    ray: Annotated[
        bool,
        Meta(description="Serve on Ray: models run in replicas, on one machine or many (docs/cluster.md)"),
    ] = False
    ray_address: Annotated[
        str | None,
        Meta(
            description="Address of a running Ray cluster for --ray; without one, Ray starts on this machine"
        ),
    ] = None
    cluster: ClusterConfig = ClusterConfig()


def is_table(field: msgspec.structs.FieldInfo) -> bool:
    """Whether a field of `ServerConfig` is a table of the file, without a flag and a variable."""
    return field.type is ClusterConfig


def is_secret(field: msgspec.structs.FieldInfo) -> bool:
    """Whether a field of `ServerConfig` holds a `Secret`."""
    args = get_args(field.type)
    return bool(args) and (Secret in args or Secret in get_args(args[0]))
