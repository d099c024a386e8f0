"""What the registry keeps of each model: its slot, the versions that hold memory, and how far a load is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from sie_server.catalog import ModelConfig
from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed, ResourceExhausted, SIEError
from sie_server.serving.lifecycle.eviction import Held
from sie_server.serving.requests.options import profile_names
from sie_server.wire import AdapterInfo, LoadProgress, ModelInfo, ModelState

Phase = Literal["fetch", "room", "load", "measure", "probe"]
# a failed load is answered from memory for so long, then tried again
PERMANENT_S, TRANSIENT_S = 60.0, 10.0
UNKNOWN_S = 5.0  # the first guess where nothing at all is known yet


@dataclass(eq=False)
class Progress:
    """A load in progress. `tally` is kept by the thread that fetches, then by the one that reads the weights."""

    started: float = field(default_factory=time.monotonic)
    phase: Phase = "fetch"
    phase_started: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """`total`: bytes of what is counted from here on."""
        self.phase, self.phase_started = phase, time.monotonic()
        if total is not None:
            self.tally = Tally(total=total)

    def remaining_s(self, bytes_per_second: float | None, now: float) -> float:
        """An estimate: by this load's own rate, else that of earlier loads, else as long again as it took so far."""
        elapsed, total = now - self.phase_started, self.tally.total
        done = self.tally.nbytes - self.tally.before
        if self.phase in ("fetch", "load") and total and done > 0:
            return elapsed * max(0, total - self.tally.nbytes) / done
        if self.phase == "load" and total and bytes_per_second:
            return max(0.0, total / bytes_per_second - elapsed)
        return max(now - self.started, UNKNOWN_S)

    def wire(self) -> LoadProgress:
        seconds = round(time.monotonic() - self.started, 1)
        return LoadProgress(self.phase, seconds, self.tally.nbytes, self.tally.total)


@dataclass(eq=False)
class Attached:
    """One LoRA adapter of one version, from the moment somebody asks for it."""

    name: str
    source: str
    adapter: Adapter | None = None
    nbytes: int = 0  # set aside before it is loaded
    stamp: str = ""  # of its files
    leases: int = 0  # requests that use it, or wait for it
    late: SIEError | None = None  # what to answer who cannot wait until there is room for it
    task: asyncio.Task[Adapter | SIEError] | None = None  # the load that is running
    error: SIEError | None = None  # of the last load
    retry_at: float = 0.0  # until then the error is the answer
    last_use: float = 0.0


@dataclass(eq=False)
class Version:
    """One engine of a model, from the moment memory is set aside for it until that is free again."""

    config: ModelConfig
    nbytes: int = 0  # without its adapters
    engine: Engine | None = None
    leases: int = 0
    last_use: float = field(default_factory=time.monotonic)
    loaded: float = 0.0
    attached: dict[str, Attached] = field(default_factory=dict)  # adapters, by name

    @property
    def memory_bytes(self) -> int:
        """What it holds with its adapters: one that is dropped counts no more, whatever its load comes to."""
        return self.nbytes + sum(held.nbytes for held in self.attached.values())


@dataclass(eq=False)
class Slot:
    """One model and where it stands. `task` is the load, swap or unload that is running, if any."""

    config: ModelConfig  # of the serving version, or of the next one to be loaded
    told: ModelConfig | None = None  # what the operator's configuration says
    pinned: bool = False
    wanted: ModelConfig | None = (
        None  # what could not replace the serving version, and is loaded when that has gone
    )
    serving: Version | None = None
    versions: list[Version] = field(default_factory=list)  # all that hold memory
    task: asyncio.Task[None] | None = None
    unloading: bool = False
    progress: Progress | None = None
    waiting: int = 0  # requests and admin callers that wait for a version
    error: SIEError | None = None  # of the last load; a new one clears it
    retry_at: float = 0.0  # until then the error is the answer
    attempts: int = 0
    refused: str | None = None  # why the last version that was to replace the serving one did not
    leaving: bool = False  # removed; it goes when its requests are done
    provisional: bool = False  # known only once its first load succeeds
    adapters: dict[str, str] = field(default_factory=dict)  # name → source, as admin callers said

    @property
    def name(self) -> str:
        return self.config.id

    @property
    def state(self) -> ModelState:
        """The state users see; a model that is being swapped is loaded."""
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

    def failed(self, error: SIEError, now: float) -> None:
        """Note why a load failed, and until when it is not tried again."""
        self.error, self.retry_at = error, now + cool_down_s(error)
        if isinstance(error, ModelLoadFailed):
            error.details["attempts"] = self.attempts

    def held(self, *, stays: bool = False) -> list[Held]:
        """Its versions as the memory policy sees them; only the serving one ever gives way, and not if it `stays`."""
        return [
            Held(
                self.name,
                version.memory_bytes,
                version.last_use,
                version.loaded,
                in_use=version.leases > 0,
                pinned=version is self.serving and (self.pinned or stays),
                passing=version is not self.serving or self._in_passing(stays),
            )
            for version in self.versions
        ]

    def spare(self, *, stays: bool = False) -> list[Held]:
        """The adapters of a serving version that stays itself, as the memory policy sees them, named MODEL:ADAPTER."""
        version = self.serving
        if version is None or self._in_passing(stays) or not (version.leases or self.pinned or stays):
            return []
        return [
            Held(f"{self.name}:{h.name}", h.nbytes, h.last_use, in_use=h.leases > 0 or h.adapter is None)
            for h in version.attached.values()
        ]

    def _in_passing(self, stays: bool) -> bool:
        """Who waited for a version is served by it before it can be told to go."""
        return self.leaving or self.waiting > 0 or (self.task is not None and not stays)

    def info(self, adapters: list[AdapterInfo]) -> ModelInfo:
        """What `GET /v1/models` says."""
        entry, engine = self.config.entry, self.serving.engine if self.serving else None
        spec = engine.spec if engine else None
        own = engine.max_seq_length if engine else entry.max_seq_length if entry else None
        return ModelInfo(
            name=self.name,
            inputs=["text"],
            outputs=spec.outputs if spec else entry.outputs if entry else [],
            dims=spec.dims if spec else entry.dims if entry else {},
            loaded=self.serving is not None,
            state=self.state,
            last_error=self.error.message if self.error else self.refused,
            max_sequence_length=own,
            profiles=profile_names(self.config.profiles),
            revision=self.config.revision,
            license=entry.license if entry else None,
            description=entry.description if entry else None,
            compat=spec.compat if spec else entry.compat if entry else False,
            source=self.config.shown_source,
            pinned=self.pinned,
            memory_bytes=self.memory_bytes,
            adapters=adapters,
            progress=self.progress.wire() if self.progress else None,
        )


class NoRoom(ResourceExhausted):
    """Models that are in use, or pinned, leave too little of the memory budget."""


def cool_down_s(error: SIEError) -> float:
    """How long a failed load is not tried again: room may come free at any moment, a broken file will not mend."""
    if isinstance(error, NoRoom):
        return 0.0
    return PERMANENT_S if error.details.get("permanent") else TRANSIENT_S


def copy_of(error: SIEError) -> SIEError:
    """The same error to raise again, without the frames, and so the tensors, that the first one came through."""
    return type(error)(error.message, retry_after_s=error.retry_after_s, **error.details)
