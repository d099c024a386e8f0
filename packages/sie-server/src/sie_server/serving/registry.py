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
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.engine import Engine
from sie_server.engine.lora import Adapter
from sie_server.engine.source import same_place
from sie_server.errors import Conflict, ModelLoading, ModelNotFound, SIEError
from sie_server.serving import memory, room
from sie_server.serving.adapters import Adapters
from sie_server.serving.loading import Loader
from sie_server.serving.metrics import Metrics
from sie_server.serving.slots import NoRoom, Slot, Version, copy_of
from sie_server.serving.transitions import Transitions
from sie_server.wire import ModelInfo, Profile

log = logging.getLogger("sie_server.registry")


class Leased(NamedTuple):
    """What a request works with."""

    engine: Engine
    adapter: Adapter | None


class Registry:
    """All slots; used on the event loop only."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        loader: Loader,
        wait_s: float,
        budget_bytes: int,
        metrics: Metrics,
        adapters: Adapters,
    ) -> None:
        self._slots = {name: Slot(config, config, config.preload) for name, config in models.items()}
        self._tasks = Transitions(self._slots, loader, wait_s, budget_bytes, metrics, adapters)
        self._adapters = adapters
        self._wait_s = wait_s

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def info(self, name: str) -> ModelInfo:
        """What is known of one model, under the name it was asked for, which may be MODEL:ADAPTER; never loads it.

        Raises:
            ModelNotFound, AdapterNotFound: with the names that look alike.
        """
        model, adapter = self.resolve(name)
        slot = self.slot(model)
        if adapter is not None:
            self._adapters.names.check(slot, adapter)
        return structs.replace(slot.info(self._adapters.names.infos(slot)), name=name)

    def resolve(self, name: str) -> tuple[str, str | None]:
        """MODEL or MODEL:ADAPTER as model and adapter; what is not known stays as it is."""
        model, _, adapter = name.rpartition(":")
        return (model, adapter) if name not in self._slots and model in self._slots else (name, None)

    def profiles(self, name: str) -> Mapping[str, Profile]:
        """What `options.profile` may be, beside `default`.

        Raises:
            ModelNotFound
        """
        return self.slot(name).config.profiles

    def infos(self) -> list[ModelInfo]:
        """All models, by id."""
        return [self.info(name) for name in sorted(self._slots)]

    def slot(self, name: str) -> Slot:
        """Raises ModelNotFound, with the ids that look alike."""
        if name not in self._slots:
            hint = suggest(name, list(self._slots))
            raise ModelNotFound(f"model {name!r} is not known here{hint or '; GET /v1/models lists what is'}")
        return self._slots[name]

    # ── requests ──

    @asynccontextmanager
    async def lease(self, name: str, adapter: str | None = None) -> AsyncIterator[Leased]:
        """The serving version, kept for as long as the block runs; loaded first if need be.

        Raises:
            ModelNotFound, AdapterNotFound, ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        if adapter is not None:  # a name that is not known must not cost a load
            self._adapters.names.check(self.slot(name), adapter)
        deadline = time.monotonic() + self._wait_s  # of both, the model and its adapter
        async with self._lease_version(name) as version:
            assert version.engine is not None
            if adapter is None:
                yield Leased(version.engine, None)
                return
            try:
                left = max(0.0, deadline - time.monotonic())
                async with self._adapters.lease(self.slot(name), version, adapter, left) as under:
                    yield Leased(version.engine, under)
            finally:
                self._tasks.pulse()  # an adapter that needs room may drop this one now

    @asynccontextmanager
    async def _lease_version(self, name: str) -> AsyncIterator[Version]:
        version = self.slot(name).serving or await self._wait_for_version(name)
        version.leases += 1
        version.last_use = time.monotonic()
        try:
            yield version
        finally:
            version.leases -= 1
            version.last_use = time.monotonic()
            if not version.leases:
                self._tasks.pulse()

    async def _wait_for_version(self, name: str) -> Version:
        """Wait for the load, which goes on when nobody waits for it any more."""
        deadline = time.monotonic() + self._wait_s
        while (slot := self.slot(name)).serving is None:
            now, joined = time.monotonic(), slot.task is not None
            if slot.task is None:
                if slot.error and now < slot.retry_at:
                    raise copy_of(slot.error)
                self._tasks.begin_load(slot, slot.config)
            assert slot.task is not None
            with self._waiting(slot):
                done, _ = await asyncio.wait([slot.task], timeout=max(0.0, deadline - now))
            if not done:
                raise self._not_yet(slot)
            if slot.error and not (joined and isinstance(slot.error, NoRoom)):
                raise copy_of(slot.error)
            # a load that found no room in time may have begun long before this request
        return slot.serving

    @contextmanager
    def _waiting(self, slot: Slot) -> Iterator[None]:
        """Nobody makes the version go for which somebody waits here, until it has been used."""
        slot.waiting += 1
        try:
            yield
        finally:
            slot.waiting -= 1
            if not slot.waiting:
                self._tasks.pulse()

    def _not_yet(self, slot: Slot) -> SIEError:
        progress = slot.progress
        if progress is None:  # unloading: the version that is going still has requests to finish
            return ModelLoading(
                f"model {slot.name!r} is unloading and will be loaded again", retry_after_s=self._wait_s
            )
        if progress.phase == "room":
            need, tasks = progress.tally.total or 0, self._tasks
            return room.none_yet(f"model {slot.name!r}", need, tasks.all_slots(), tasks.budget, self._wait_s)
        now = time.monotonic()
        remaining = max(1.0, progress.remaining_s(self._tasks.loader.bytes_per_second, now))
        return ModelLoading(
            f"model {slot.name!r} is loading ({progress.phase}), {now - progress.started:.0f} s so far; "
            f"try again in about {remaining:.0f} s",
            retry_after_s=remaining,
        )

    # ── what operators ask for; the work goes on when the caller hangs up ──

    async def preload(self) -> None:
        """Load what is configured to be loaded at start and does not serve yet; the first failure is raised."""
        for slot in list(self._slots.values()):
            while slot.config.preload and slot.serving is None and not slot.leaving:
                if slot.task:  # an admin's, or a request's; what comes of it is seen then
                    await asyncio.wait([slot.task])
                else:
                    await self.load(slot.name)

    async def load(self, name: str, config: ModelConfig | None = None, pin: bool | None = None) -> None:
        """Load a model, a new one too, if there is a `config`; nothing to do when that is loaded already.

        Without `config` it is loaded as it is configured when its turn comes, after an unload that is running.

        Raises:
            ModelNotFound
            Conflict: another load or swap is running, or it is loaded from elsewhere.
            ModelLoadFailed, ResourceExhausted
        """
        slot = self._to_load(name, config)
        while slot.unloading and slot.task:
            await asyncio.wait([slot.task])
            slot = self._to_load(name, config)
        same = config is None or same_source(slot.config, config)
        if slot.serving and not slot.task and not same:
            raise Conflict(
                f"model {slot.name!r} is loaded from {slot.config.shown_source!r}; swap it instead"
            )
        if slot.task and (slot.serving or not same):
            raise _busy(slot)
        pinned = slot.pinned
        slot.pinned = pinned if pin is None else pin  # before it serves: from then on it may have to give way
        if slot.serving:
            return
        try:
            with self._waiting(slot):
                await asyncio.shield(slot.task or self._tasks.begin_load(slot, config or slot.config))
        except SIEError:
            slot.pinned = pinned
            raise

    def _to_load(self, name: str, config: ModelConfig | None) -> Slot:
        if config is None:
            return self.slot(name)
        return self._slots.setdefault(name, Slot(config, pinned=config.preload, provisional=True))

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
            await self.load(config.id, config)
        else:
            await asyncio.shield(self._tasks.begin_swap(slot, config))

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
            await asyncio.shield(slot.task or self._tasks.begin_unload(slot))

    async def load_adapter(self, model: str, name: str, source: str) -> None:
        """Attach an adapter, to the model's first version if it is not loaded; see `Adapters.add`.

        Its files are fetched before the model is leased: a lease would hold up an unload, and with it every request
        for the model, for as long as a download takes.
        """
        stamp = await self._adapters.fetch(self.slot(model), name, source)
        while (slot := self.slot(model)).serving is None:
            await self.load(model)
        async with self._lease_version(model) as version:
            await self._adapters.add(slot, version, name, source, stamp)

    def unload_adapter(self, model: str, name: str) -> None:
        """See `Adapters.remove`."""
        self._adapters.remove(self.slot(model), name)

    async def update(self, config: ModelConfig) -> None:
        """Take over a changed or new configuration: swapped if the model is loaded and its weights change, else noted.

        Where it means the same weights as before, those that an admin has loaded since stay.

        Raises:
            ModelLoadFailed, ResourceExhausted: the old version serves on; `retry` or the next load takes the new one.
        """
        slot = self._slots.setdefault(config.id, Slot(config, pinned=config.preload))
        slot.provisional = False  # known from now on, whatever becomes of a load that is running
        while slot.task:
            await asyncio.wait([slot.task])
        told, slot.told = slot.told, config
        if told and told.weights == config.weights and not slot.wanted:
            now = slot.config
            config = replace(config, source=now.source, revision=now.revision, stamp=now.stamp)
        if slot.serving is None:
            slot.config, slot.error, slot.refused = config, None, None
        elif slot.serving.config.weights == config.weights:
            slot.config = slot.serving.config = config
            slot.wanted = slot.refused = None
            self._adapters.forget_others(slot)
        else:
            slot.wanted = config
            await self.swap(config)

    async def retry(self, name: str) -> None:
        """Try again an update that failed, unless the model is gone, or loaded otherwise since; raises as `update`."""
        if (slot := self._slots.get(name)) and slot.wanted:
            await self.update(slot.wanted)

    async def remove(self, name: str) -> None:
        """Forget a model: unknown from now on; its running requests finish."""
        slot = self._slots.pop(name)
        slot.leaving = True
        self._tasks.leaving.add(slot)
        while slot.task:
            await asyncio.wait([slot.task])
        if slot.serving:
            await asyncio.wait([self._tasks.begin_unload(slot)])
        while slot.versions:  # one that was replaced may still have requests
            await self._tasks.change()
        self._tasks.leaving.discard(slot)

    async def unload_idle(self, seconds: float) -> None:
        """Unload what nobody has asked for in `seconds`, for ever."""
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for name in memory.idle_for(self._tasks.held(), time.monotonic(), seconds):
                log.info("unloading %s: idle for %.0f s", name, seconds)
                self._tasks.begin_unload(self._slots[name])

    def close(self) -> None:
        """Stop waiting for what is running."""
        self._tasks.close()


def same_source(one: ModelConfig, other: ModelConfig) -> bool:
    """True when both mean the same weights."""
    return one.revision == other.revision and same_place(one.source, other.source)


def _busy(slot: Slot) -> Conflict:
    doing = "unloaded" if slot.unloading else "swapped" if slot.serving else "loaded"
    return Conflict(f"model {slot.name!r} is being {doing}; try again when that is done")
