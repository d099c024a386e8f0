"""What operators ask for: at the start, over the admin routes, in the models directory.

All of it goes on when the caller hangs up. Requests come by `serving.lifecycle.registry`, and never change a slot themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from sie_server.catalog import ModelConfig
from sie_server.engine.storage.source import same_place
from sie_server.errors import Conflict, SIEError
from sie_server.serving.lifecycle import eviction
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.lifecycle.slots import Slot

log = logging.getLogger("sie_server.operations")


class Operations:
    """Loads, swaps, unloads; used on the event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def preload(self) -> None:
        """Load what is configured to be loaded at start and does not serve yet; the first failure is raised."""
        for slot in list(self._registry.slots.values()):
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
            with self._registry.waiting(slot):
                await asyncio.shield(
                    slot.task or self._registry.tasks.begin_load(slot, config or slot.config)
                )
        except SIEError:
            slot.pinned = pinned
            raise

    def _to_load(self, name: str, config: ModelConfig | None) -> Slot:
        if config is None:
            return self._registry.slot(name)
        return self._registry.slots.setdefault(name, Slot(config, pinned=config.preload, provisional=True))

    async def swap(self, config: ModelConfig) -> None:
        """Replace the serving version by another, which must load, work and give all that the old one gives.

        Raises:
            ModelNotFound, Conflict
            ModelLoadFailed, ResourceExhausted: the old version serves on.
        """
        slot = self._registry.slot(config.id)
        if slot.task:
            raise _busy(slot)
        if slot.serving is None:
            await self.load(config.id, config)
        else:
            await asyncio.shield(self._registry.tasks.begin_swap(slot, config))

    async def unload(self, name: str) -> None:
        """Let running requests finish and free the memory; nothing to do when it is not loaded.

        Raises:
            ModelNotFound
            Conflict: a load or swap is running.
        """
        slot = self._registry.slot(name)
        if slot.task and not slot.unloading:
            raise _busy(slot)
        slot.pinned = False
        if slot.serving or slot.task:
            await asyncio.shield(slot.task or self._registry.tasks.begin_unload(slot))

    async def load_adapter(self, model: str, name: str, source: str) -> None:
        """Attach an adapter, to the model's first version if it is not loaded; see `Adapters.add`.

        Its files are fetched before the model is leased: a lease would hold up an unload, and with it every request
        for the model, for as long as a download takes.
        """
        stamp = await self._registry.adapters.fetch(self._registry.slot(model), name, source)
        while (slot := self._registry.slot(model)).serving is None:
            await self.load(model)
        async with self._registry.lease_version(model) as version:
            await self._registry.adapters.add(slot, version, name, source, stamp)

    def unload_adapter(self, model: str, name: str) -> None:
        """See `Adapters.remove`."""
        self._registry.adapters.remove(self._registry.slot(model), name)

    async def update(self, config: ModelConfig) -> None:
        """Take over a changed or new configuration: swapped if the model is loaded and its weights change, else noted.

        Where it means the same weights as before, those that an admin has loaded since stay.

        Raises:
            ModelLoadFailed, ResourceExhausted: the old version serves on; `retry` or the next load takes the new one.
        """
        slot = self._registry.slots.setdefault(config.id, Slot(config, pinned=config.preload))
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
            self._registry.adapters.forget_others(slot)
        else:
            slot.wanted = config
            await self.swap(config)

    async def retry(self, name: str) -> None:
        """Try again an update that failed, unless the model is gone, or loaded otherwise since; raises as `update`."""
        if (slot := self._registry.slots.get(name)) and slot.wanted:
            await self.update(slot.wanted)

    async def remove(self, name: str) -> None:
        """Forget a model: unknown from now on; its running requests finish."""
        slot = self._registry.slots.pop(name)
        slot.leaving = True
        self._registry.tasks.leaving.add(slot)
        while slot.task:
            await asyncio.wait([slot.task])
        if slot.serving:
            await asyncio.wait([self._registry.tasks.begin_unload(slot)])
        while slot.versions:  # one that was replaced may still have requests
            await self._registry.tasks.change()
        self._registry.tasks.leaving.discard(slot)

    async def unload_idle(self, seconds: float) -> None:
        """Unload what nobody has asked for in `seconds`, for ever."""
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for name in eviction.idle_for(self._registry.tasks.held(), time.monotonic(), seconds):
                log.info("unloading %s: idle for %.0f s", name, seconds)
                self._registry.tasks.begin_unload(self._registry.slots[name])


def same_source(one: ModelConfig, other: ModelConfig) -> bool:
    """True when both mean the same weights."""
    return one.revision == other.revision and same_place(one.source, other.source)


def _busy(slot: Slot) -> Conflict:
    doing = "unloaded" if slot.unloading else "swapped" if slot.serving else "loaded"
    return Conflict(f"model {slot.name!r} is being {doing}; try again when that is done")
