"""The state of each model: its slot, the versions that hold memory, and their adapters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from sie_server.catalog import ModelConfig, profile_names
from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import ModelLoadFailed, SIEError
from sie_server.serving.lifecycle.eviction import Allocation
from sie_server.serving.loading.failures import cool_down_s
from sie_server.serving.loading.progress import Progress
from sie_server.wire import AdapterInfo, ModelInfo, ModelState

STARTED = int(time.time())  # of the server, as `created` of every model


@dataclass(eq=False)
class AttachedAdapter:
    """One LoRA adapter of one version, from the first request for it."""

    name: str
    source: str
    adapter: Adapter | None = None
    nbytes: int = 0  # reserved before it is loaded
    stamp: str = ""  # of its files
    leases: int = 0  # requests that use it or wait for it
    timeout_error: SIEError | None = None  # answer for requests whose time ends while it waits for memory
    task: asyncio.Task[Adapter | SIEError] | None = None  # the running load
    progress: Progress | None = None  # of that load
    look: asyncio.Task[None] | None = None  # compares its files with `stamp`
    looked_at: float = 0.0
    changed_to: str = ""  # the stamp that the last look found
    failed_stamp: str = ""  # of files that could not replace these
    error: SIEError | None = None  # of the last load
    retry_at: float = 0.0  # until then the error is the answer
    last_use: float = 0.0


@dataclass(eq=False)
class Version:
    """One engine of a model, from the moment memory is reserved for it until that memory is free again."""

    config: ModelConfig
    nbytes: int = 0  # without its adapters
    engine: Engine | None = None
    leases: int = 0
    last_use: float = field(default_factory=time.monotonic)
    serving_since: float = 0.0
    attached: dict[str, AttachedAdapter] = field(default_factory=dict)  # by name
    outdated: str | None = None  # why these files are older than those that the hub or its cache names

    @property
    def memory_bytes(self) -> int:
        """Bytes of the version and its adapters. A dropped adapter no longer counts, even while a request uses it."""
        return self.nbytes + sum(attached.nbytes for attached in self.attached.values())

    def drop(self, name: str) -> None:
        """Drop an adapter. Requests that use it finish with it; its memory is free after the last one."""
        attached = self.attached.pop(name)
        if attached.adapter and self.engine:
            self.engine.detach(attached.adapter)

    def release(self) -> None:
        """Drop the engine, its adapters and its cached documents."""
        if self.engine and self.engine.documents:
            self.engine.documents.forget()
        self.attached.clear()  # adapters refer to the layers they change and would keep them alive
        self.engine = None


@dataclass(eq=False)
class Slot:
    """One model id and its state. `task` is the running load, swap or unload, if any."""

    config: ModelConfig  # of the serving version, or of the next version to load
    configured: ModelConfig | None = None  # from the operator's configuration
    pinned: bool = False
    pending: ModelConfig | None = None  # failed to replace the serving version; used by the next load
    serving: Version | None = None
    versions: list[Version] = field(default_factory=list)  # all that hold memory
    task: asyncio.Task[None] | None = None
    unloading: bool = False
    progress: Progress | None = None
    waiting: int = 0  # requests and admin callers that wait for a version
    error: SIEError | None = None  # of the last load; a new load clears it
    retry_at: float = 0.0  # until then the error is the answer
    attempts: int = 0
    swap_error: str | None = None  # why the last replacement of the serving version failed
    removed: bool = False  # unknown to new requests; its memory is freed when its requests have finished
    provisional: bool = False  # becomes known when its first load succeeds
    adapters: dict[str, str] = field(default_factory=dict)  # name → source, from admin callers
    # name → source and progress of adapters that admin callers download
    fetching: dict[str, tuple[str, Progress]] = field(default_factory=dict)
    starting: bool = False  # its load is a part of the start, which ends with the error if it fails

    @property
    def name(self) -> str:
        return self.config.id

    @property
    def state(self) -> ModelState:
        """The state that users see; a model that is being swapped is loaded."""
        if self.serving:
            return "loaded"
        if self.unloading:
            return "unloading"
        if self.task:
            return "loading"
        return "failed" if isinstance(self.error, ModelLoadFailed) else "available"

    @property
    def memory_bytes(self) -> int:
        return sum(version.memory_bytes for version in self.versions)

    def note_failure(self, error: SIEError, now: float) -> None:
        """Record why a load failed, and when the next attempt is allowed."""
        self.error, self.retry_at = error, now + cool_down_s(error)
        if isinstance(error, ModelLoadFailed):
            error.details["attempts"] = self.attempts

    def allocations(self, *, stays: bool = False) -> list[Allocation]:
        """Its versions for the eviction policy. Only the serving version can be evicted, unless it `stays`."""
        return [
            Allocation(
                self.name,
                version.memory_bytes,
                version.last_use,
                version.serving_since,
                in_use=version.leases > 0,
                pinned=version is self.serving and (self.pinned or stays),
                in_transition=version is not self.serving or self._in_transition(stays),
            )
            for version in self.versions
        ]

    def droppable_adapters(self, *, stays: bool = False) -> list[Allocation]:
        """The adapters, named MODEL:ADAPTER, of a serving version that is not itself a candidate for eviction."""
        version = self.serving
        if version is None or self._in_transition(stays) or not (version.leases or self.pinned or stays):
            return []
        return [
            Allocation(
                f"{self.name}:{a.name}", a.nbytes, a.last_use, in_use=a.leases > 0 or a.adapter is None
            )
            for a in version.attached.values()
        ]

    def _in_transition(self, stays: bool) -> bool:
        # A version is evicted only after it has served the requests that waited for it.
        return self.removed or self.waiting > 0 or (self.task is not None and not stays)

    def _last_error(self) -> str | None:
        if self.error:
            return self.error.message
        return (self.serving and self.serving.engine and self.serving.engine.trouble) or self.swap_error

    def info(self, adapters: list[AdapterInfo]) -> ModelInfo:
        """The entry of `GET /v1/models`."""
        entry, engine = self.config.entry, self.serving.engine if self.serving else None
        spec = engine.spec if engine else None
        outdated = self.serving.outdated if self.serving else None
        warnings = [text for text in (outdated, spec.warning if spec else None) if text]
        limit = engine.max_seq_length if engine else entry.max_seq_length if entry else None
        outputs = spec.outputs if spec else entry.outputs if entry else []
        return ModelInfo(
            id=self.name,
            created=STARTED,
            owned_by=self.name.split("/")[0],
            root=self.name,
            max_model_len=limit,
            model_type=("rerank" if "score" in outputs else "embedding") if outputs else None,
            name=self.name,
            aliases=list(self.config.aliases),
            inputs=["text"],
            outputs=outputs,
            dims=spec.dims if spec else entry.dims if entry else {},
            loaded=self.serving is not None,
            state=self.state,
            last_error=self._last_error(),
            max_sequence_length=limit,
            profiles=profile_names(self.config.profiles),
            revision=self.config.revision,
            license=entry.license if entry else None,
            description=entry.description if entry else None,
            compat=spec.compat if spec else entry.compat if entry else False,
            warning="; ".join(warnings) or None,
            source=self.config.shown_source,
            pinned=self.pinned,
            memory_bytes=self.memory_bytes,
            adapters=adapters,
            progress=self.progress.wire() if self.progress else None,
        )
