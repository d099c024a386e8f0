"""Model id → slot, and leases. One task at a time changes a slot; requests only begin loads, and wait.

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
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from msgspec import structs

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import ModelLoading, ModelNotFound, SIEError
from sie_server.serving.lifecycle import budget as room
from sie_server.serving.lifecycle.adapters import Adapters
from sie_server.serving.lifecycle.loader import Loader
from sie_server.serving.lifecycle.slots import NoRoom, Slot, Version, copy_of
from sie_server.serving.lifecycle.transitions import Transitions
from sie_server.serving.metrics import Metrics
from sie_server.wire import ModelInfo, Profile


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
        self.slots = {name: Slot(config, config, config.preload) for name, config in models.items()}
        self.tasks = Transitions(self.slots, loader, wait_s, budget_bytes, metrics, adapters)
        self.adapters = adapters
        self._wait_s = wait_s

    def __contains__(self, name: str) -> bool:
        return name in self.slots

    def info(self, name: str) -> ModelInfo:
        """What is known of one model, under the name it was asked for, which may be MODEL:ADAPTER; never loads it.

        Raises:
            ModelNotFound, AdapterNotFound: with the names that look alike.
        """
        model, adapter = self.resolve(name)
        slot = self.slot(model)
        if adapter is not None:
            self.adapters.names.check(slot, adapter)
        return structs.replace(slot.info(self.adapters.names.infos(slot)), name=name)

    def resolve(self, name: str) -> tuple[str, str | None]:
        """MODEL or MODEL:ADAPTER as model and adapter; what is not known stays as it is."""
        model, _, adapter = name.rpartition(":")
        return (model, adapter) if name not in self.slots and model in self.slots else (name, None)

    def profiles(self, name: str) -> Mapping[str, Profile]:
        """What `options.profile` may be, beside `default`.

        Raises:
            ModelNotFound
        """
        return self.slot(name).config.profiles

    def infos(self) -> list[ModelInfo]:
        """All models, by id."""
        return [self.info(name) for name in sorted(self.slots)]

    def slot(self, name: str) -> Slot:
        """Raises ModelNotFound, with the ids that look alike."""
        if name not in self.slots:
            hint = suggest(name, list(self.slots))
            raise ModelNotFound(f"model {name!r} is not known here{hint or '; GET /v1/models lists what is'}")
        return self.slots[name]

    # ── requests ──

    @asynccontextmanager
    async def lease(self, name: str, adapter: str | None = None) -> AsyncIterator[Leased]:
        """The serving version, kept for as long as the block runs; loaded first if need be.

        Raises:
            ModelNotFound, AdapterNotFound, ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        if adapter is not None:  # a name that is not known must not cost a load
            self.adapters.names.check(self.slot(name), adapter)
        deadline = time.monotonic() + self._wait_s  # of both, the model and its adapter
        async with self.lease_version(name) as version:
            assert version.engine is not None
            if adapter is None:
                yield Leased(version.engine, None)
                return
            try:
                left = max(0.0, deadline - time.monotonic())
                async with self.adapters.lease(self.slot(name), version, adapter, left) as under:
                    yield Leased(version.engine, under)
            finally:
                self.tasks.pulse()  # an adapter that needs room may drop this one now

    @asynccontextmanager
    async def lease_version(self, name: str) -> AsyncIterator[Version]:
        """The same without an adapter."""
        version = self.slot(name).serving or await self._wait_for_version(name)
        version.leases += 1
        version.last_use = time.monotonic()
        try:
            yield version
        finally:
            version.leases -= 1
            version.last_use = time.monotonic()
            if not version.leases:
                self.tasks.pulse()

    async def _wait_for_version(self, name: str) -> Version:
        """Wait for the load, which goes on when nobody waits for it any more."""
        deadline = time.monotonic() + self._wait_s
        while (slot := self.slot(name)).serving is None:
            now, joined = time.monotonic(), slot.task is not None
            if slot.task is None:
                if slot.error and now < slot.retry_at:
                    raise copy_of(slot.error)
                self.tasks.begin_load(slot, slot.config)
            assert slot.task is not None
            with self.waiting(slot):
                done, _ = await asyncio.wait([slot.task], timeout=max(0.0, deadline - now))
            if not done:
                raise self._not_yet(slot)
            if slot.error and not (joined and isinstance(slot.error, NoRoom)):
                raise copy_of(slot.error)
            # a load that found no room in time may have begun long before this request
        return slot.serving

    @contextmanager
    def waiting(self, slot: Slot) -> Iterator[None]:
        """Nobody makes the version go for which somebody waits here, until it has been used."""
        slot.waiting += 1
        try:
            yield
        finally:
            slot.waiting -= 1
            if not slot.waiting:
                self.tasks.pulse()

    def _not_yet(self, slot: Slot) -> SIEError:
        progress = slot.progress
        if progress is None:  # unloading: the version that is going still has requests to finish
            return ModelLoading(
                f"model {slot.name!r} is unloading and will be loaded again", retry_after_s=self._wait_s
            )
        if progress.phase == "room":
            need, tasks = progress.tally.total or 0, self.tasks
            return room.none_yet(f"model {slot.name!r}", need, tasks.all_slots(), tasks.budget, self._wait_s)
        now = time.monotonic()
        remaining = max(1.0, progress.remaining_s(self.tasks.loader.bytes_per_second, now))
        return ModelLoading(
            f"model {slot.name!r} is loading ({progress.phase}), {now - progress.started:.0f} s so far; "
            f"try again in about {remaining:.0f} s",
            retry_after_s=remaining,
        )

    def close(self) -> None:
        """Stop waiting for what is running."""
        self.tasks.close()
