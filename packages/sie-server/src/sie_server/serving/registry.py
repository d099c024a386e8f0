"""Model id → slot: leases, loads, swaps and unloads. One task at a time changes a slot; requests only wait for it.

              ┌────────────────────── done ─────────────────────┐
              ▼                                                 │
          available ──lease or load──▶ loading ──▶ loaded ──▶ unloading   idle too long, evicted, or told to
              ▲                           │         │  ▲
              └──cool-down over── failed ◀┘         └──┘ swap: the new version loads beside the serving one

A lease holds one version, from tokenising to the answer. A version that was replaced or is unloaded takes no new
leases, and is freed when its last one ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.engine import Engine
from sie_server.errors import Conflict, ModelLoading, ModelNotFound, SIEError
from sie_server.serving import memory, room
from sie_server.serving.loading import Loader, as_load_error, check_outputs
from sie_server.serving.metrics import Metrics
from sie_server.serving.slots import Progress, Slot, Version, copy_of
from sie_server.wire import ModelInfo

log = logging.getLogger("sie_server.registry")
PATIENCE = 0.25  # part of load_wait_s after which a load that finds no room has a model in use drained


class Registry:
    """All slots; used on the event loop only."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        loader: Loader,
        wait_s: float,
        budget_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._slots = {name: Slot(config, pinned=config.preload) for name, config in models.items()}
        self._leaving: set[Slot] = set()  # removed, and still holding memory
        self._loader, self._metrics = loader, metrics
        self._wait_s, self._budget = wait_s, budget_bytes
        self._changed = asyncio.Event()
        self._draining: set[asyncio.Task[None]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def info(self, name: str) -> ModelInfo:
        """What is known of one model; never loads it.

        Raises:
            ModelNotFound: with the ids that look alike.
        """
        return self.slot(name).info()

    def infos(self) -> list[ModelInfo]:
        """All models, by id."""
        return [slot.info() for _, slot in sorted(self._slots.items())]

    def slot(self, name: str) -> Slot:
        """Raises ModelNotFound, with the ids that look alike."""
        if name not in self._slots:
            hint = suggest(name, list(self._slots))
            raise ModelNotFound(f"model {name!r} is not known here{hint or '; GET /v1/models lists what is'}")
        return self._slots[name]

    # ── requests ──

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Engine]:
        """The serving version, kept for as long as the block runs; loaded first if need be.

        Raises:
            ModelNotFound, ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        version = self.slot(name).serving or await self._wait_for_version(name)
        assert version.engine is not None
        version.leases += 1
        version.last_use = time.monotonic()
        try:
            yield version.engine
        finally:
            version.leases -= 1
            version.last_use = time.monotonic()
            if not version.leases:
                self._pulse()

    async def _wait_for_version(self, name: str) -> Version:
        """Wait for the load, which goes on when nobody waits for it any more."""
        deadline = time.monotonic() + self._wait_s
        while (slot := self.slot(name)).serving is None:
            now = time.monotonic()
            if slot.task is None:
                if slot.error and now < slot.retry_at:
                    raise copy_of(slot.error)
                self._begin(slot, self._load(slot, slot.config))
            assert slot.task is not None
            slot.waiting += 1
            try:
                done, _ = await asyncio.wait([slot.task], timeout=max(0.0, deadline - now))
            finally:
                slot.waiting -= 1
            if not done:
                raise self._not_yet(slot)
            if slot.error:
                raise copy_of(slot.error)
        return slot.serving

    def _not_yet(self, slot: Slot) -> SIEError:
        progress = slot.progress
        if progress is None:  # unloading: the version that is going still has requests to finish
            return ModelLoading(
                f"model {slot.name!r} is unloading and will be loaded again", retry_after_s=self._wait_s
            )
        if progress.phase == "room":
            return room.none_yet(
                slot.name, progress.total or 0, self._all_slots(), self._budget, self._wait_s
            )
        now = time.monotonic()
        remaining = max(1.0, progress.remaining_s(self._loader.bytes_per_second, now))
        return ModelLoading(
            f"model {slot.name!r} is loading ({progress.phase}), {now - progress.started:.0f} s so far; "
            f"try again in about {remaining:.0f} s",
            retry_after_s=remaining,
        )

    # ── what operators ask for; the work goes on when the caller hangs up ──

    async def preload(self) -> None:
        """Load what is configured to be loaded at start; the first failure is raised."""
        for slot in list(self._slots.values()):
            if slot.config.preload:
                await self.load(slot.config)

    async def load(self, config: ModelConfig) -> None:
        """Load a model as `config` says, a new one too; nothing to do when that is loaded already.

        Raises:
            Conflict: another load, swap or unload is running, or it is loaded from elsewhere.
            ModelLoadFailed, ResourceExhausted
        """
        new = Slot(config, pinned=config.preload, provisional=True)
        slot = self._slots.setdefault(config.id, new)
        if slot.unloading and slot.task:
            await asyncio.wait([slot.task])
        same = same_source(slot.config, config)
        if slot.serving and not slot.task:
            if same:
                return
            raise Conflict(f"model {slot.name!r} is loaded from {slot.config.source!r}; swap it instead")
        if slot.task and (slot.serving or not same):
            raise _busy(slot)
        await asyncio.shield(slot.task or self._begin(slot, self._load(slot, config)))

    async def swap(self, config: ModelConfig) -> None:
        """Replace the serving version by another, which must load, work and give all that the old one gives.

        Raises:
            ModelNotFound, Conflict
            ModelLoadFailed, ResourceExhausted: the old version serves on.
        """
        slot = self.slot(config.id)
        if slot.task:
            raise _busy(slot)
        if slot.serving is None:
            await self.load(config)
        else:
            await asyncio.shield(self._begin(slot, self._swap(slot, slot.serving, config)))

    async def unload(self, name: str) -> None:
        """Let running requests finish and free the memory; nothing to do when it is not loaded.

        Raises:
            ModelNotFound
            Conflict: a load or swap is running.
        """
        slot = self.slot(name)
        if slot.task and not slot.unloading:
            raise _busy(slot)
        slot.pinned = False
        if slot.serving or slot.task:
            await asyncio.shield(slot.task or self._begin_unload(slot))

    async def update(self, config: ModelConfig) -> None:
        """Take over a changed or new configuration: swapped if the model is loaded, noted if not."""
        slot = self._slots.setdefault(config.id, Slot(config, pinned=config.preload))
        while slot.task:
            await asyncio.wait([slot.task])
        if slot.serving is None:
            slot.config, slot.error, slot.refused = config, None, None
        elif slot.config != config:
            await self.swap(config)

    async def remove(self, name: str) -> None:
        """Forget a model: unknown from now on; its running requests finish."""
        slot = self._slots.pop(name)
        slot.leaving = True
        self._leaving.add(slot)
        while slot.task:
            await asyncio.wait([slot.task])
        if slot.serving:
            await asyncio.wait([self._begin_unload(slot)])
        self._leaving.discard(slot)

    async def unload_idle(self, seconds: float) -> None:
        """Unload what nobody has asked for in `seconds`, for ever."""
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for name in memory.idle_for(self._held(), time.monotonic(), seconds):
                log.info("unloading %s: idle for %.0f s", name, seconds)
                self._begin_unload(self._slots[name])

    def close(self) -> None:
        """Stop waiting for what is running."""
        running = [slot.task for slot in self._all_slots() if slot.task]
        for task in (*running, *self._draining):
            task.cancel()

    # ── what changes a slot ──

    def _begin(self, slot: Slot, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the one task that may change the slot."""
        assert slot.task is None
        slot.task = task = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._ended(slot, done))
        return task

    def _ended(self, slot: Slot, task: asyncio.Task[None]) -> None:
        slot.task, slot.progress, slot.unloading = None, None, False
        if not task.cancelled():
            task.exception()  # noted in the slot; nobody may be waiting for it
        if slot.provisional and slot.serving is None and self._slots.get(slot.name) is slot:
            del self._slots[slot.name]
        self._pulse()

    async def _load(self, slot: Slot, config: ModelConfig) -> None:
        slot.error, slot.attempts = None, slot.attempts + 1
        try:
            version = await self._bring_up(slot, config)
        except SIEError as error:
            if config is slot.config:  # an operator's other source says nothing about this one
                slot.failed(copy_of(error), time.monotonic())
            raise
        self._serve(slot, version)

    async def _swap(self, slot: Slot, old: Version, config: ModelConfig) -> None:
        try:
            version = await self._bring_up(slot, config, old)
        except SIEError as error:
            slot.refused = error.message
            raise
        self._serve(
            slot, version
        )  # from here on leases are of the new version; there is no moment in between
        self._metrics.swaps.labels(slot.name).inc()
        task = asyncio.create_task(self._drain(slot, old))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _serve(self, slot: Slot, version: Version) -> None:
        slot.config, slot.serving, version.loaded = version.config, version, time.monotonic()
        slot.error, slot.refused, slot.provisional = None, None, False
        self._metrics.loads.labels(slot.name).inc()

    async def _bring_up(self, slot: Slot, config: ModelConfig, old: Version | None = None) -> Version:
        """A version ready to serve; nothing is left of one that fails."""
        version = Version(config)
        slot.progress = progress = Progress()
        try:
            await self._fill(slot, version, progress, old)
            seconds, size = time.monotonic() - progress.started, version.nbytes / 2**20
            log.info("loaded %s from %s in %.1f s, %.1f MiB", slot.name, config.source, seconds, size)
            return version
        except Exception as error:
            failure = copy_of(as_load_error(slot.name, error))
        # outside of the handler nothing holds on to the tensors of the failed load any more
        log.error("could not load %s: %s", slot.name, failure.message)
        self._metrics.load_failures.labels(slot.name).inc()
        if version in slot.versions:
            slot.versions.remove(version)
            await self._loader.free(version)
        raise failure

    async def _fill(self, slot: Slot, version: Version, progress: Progress, old: Version | None) -> None:
        log.info("fetching %s from %s", slot.name, version.config.source)
        directory, need = await self._loader.fetch(version.config)
        version.nbytes = progress.total = need
        progress.enter("room")
        await self._make_room(slot, version, drain=old is None)
        progress.enter("load")
        version.engine = await self._loader.load(version.config, directory, progress)
        version.nbytes = version.engine.memory_bytes
        await self._evict(memory.make_room(self._held(slot), self._budget, 0).evict)
        if old and old.engine:
            progress.enter("probe")
            check_outputs(version.config, old.engine, version.engine)
            await self._loader.probe(version.config, version.engine)

    async def _make_room(self, slot: Slot, version: Version, *, drain: bool) -> None:
        """Set the version's memory aside, once others that are idle have gone.

        With `drain`, those that are in use without a pause have to go after a while; otherwise two busy models would
        keep a third from ever being served.
        """
        begun = time.monotonic()
        while not (plan := memory.make_room(self._held(slot), self._budget, version.nbytes)).fits:
            waited = time.monotonic() - begun
            if not plan.possible:
                raise room.never(slot.name, version.nbytes, self._all_slots(), self._budget)
            if waited >= self._wait_s:
                raise room.none_yet(slot.name, version.nbytes, self._all_slots(), self._budget, waited)
            patient = waited < PATIENCE * self._wait_s
            if drain and not patient:
                self._metrics_evict(plan.drain)
                for name in plan.drain:
                    log.info("draining %s to make room for %s", name, slot.name)
                    self._begin_unload(self._slots[name])
            await self._change(self._wait_s * (PATIENCE if patient else 1.0) - waited)
        slot.versions.append(version)
        await self._evict(plan.evict)

    async def _evict(self, names: list[str]) -> None:
        self._metrics_evict(names)
        for name in names:
            log.info("unloading %s to make room", name)
        if tasks := [self._begin_unload(self._slots[name]) for name in names]:
            await asyncio.wait(tasks)

    def _metrics_evict(self, names: list[str]) -> None:
        for name in names:
            self._metrics.evictions.labels(name).inc()

    def _begin_unload(self, slot: Slot) -> asyncio.Task[None]:
        version, slot.serving, slot.unloading = slot.serving, None, True
        assert version is not None
        return self._begin(slot, self._drain(slot, version))

    async def _drain(self, slot: Slot, version: Version) -> None:
        """Free a version that takes no new leases, when its last one has ended."""
        while version.leases:
            await self._change(None)
        slot.versions.remove(version)
        await self._loader.free(version)
        log.info("unloaded %s from %s", slot.name, version.config.source)
        self._pulse()

    # ── waiting for a change of anything: a lease ended, a task is done ──

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _all_slots(self) -> list[Slot]:
        return [*self._slots.values(), *self._leaving]

    def _held(self, loading: Slot | None = None) -> list[memory.Held]:
        """All versions; while a slot is `loading` another version, the one that serves there stays."""
        return [held for slot in self._all_slots() for held in slot.held(stays=slot is loading)]


def same_source(one: ModelConfig, other: ModelConfig) -> bool:
    """True when both mean the same weights."""
    return (one.source, one.revision) == (other.source, other.revision)


def _busy(slot: Slot) -> Conflict:
    doing = "unloaded" if slot.unloading else "swapped" if slot.serving else "loaded"
    return Conflict(f"model {slot.name!r} is being {doing}; try again when that is done")
