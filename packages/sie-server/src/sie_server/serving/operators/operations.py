"""Loads, swaps and unloads that operators request: at start, over the admin routes, and in the models directory.

An operation continues when its caller hangs up. Requests for models go through `serving.lifecycle.registry` and never
change a slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from sie_server.catalog import ModelConfig
from sie_server.engine.storage.source import same_place
from sie_server.errors import Conflict, ModelLoading, SIEError
from sie_server.serving.lifecycle import eviction
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.lifecycle.slots import Slot
from sie_server.serving.lifecycle.transitions import Hold
from sie_server.serving.loading.lanes import PATIENCE_S

log = logging.getLogger("sie_server.operations")


class Operations:
    """Used on the event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry, self._table = registry, registry.table
        self._transitions = registry.transitions

    async def preload(self) -> None:
        """Load the models that are configured to load at start. The first failure is not logged, and names the model.

        Raises:
            Conflict, ModelLoadFailed, ResourceExhausted
        """
        for slot in list(self._table.by_id.values()):
            if slot.config.preload and (cascade := self._registry.cascade(slot.name)):
                for stage in cascade.stages:
                    await self.load(stage.model, pin=True)
                continue
            while slot.config.preload and slot.serving is None and not slot.removed:
                if slot.task:  # of an admin caller or a request; the loop looks at its outcome
                    await asyncio.wait([slot.task])
                    continue
                slot.starting = True
                try:
                    await self.load(slot.name)
                except SIEError as error:
                    if slot.name in error.message:
                        raise
                    message = f"could not load {slot.name}: {error.message}"
                    raise type(error)(message, retry_after_s=error.retry_after_s, **error.details) from None
                finally:
                    slot.starting = False

    async def load(self, name: str, config: ModelConfig | None = None, pin: bool | None = None) -> None:
        """Load a model. With `config` the model may be new. Do nothing if it is already loaded.

        Without `config`, a running unload finishes first, and the model is loaded as it is configured then.

        Raises:
            ModelNotFound
            Conflict: another load or swap is running, or the model is loaded from another source.
            ModelLoadFailed, ResourceExhausted
        """
        slot = self._slot_to_load(name, config)
        while slot.unloading and slot.task:
            await asyncio.wait([slot.task])
            slot = self._slot_to_load(name, config)
        same = config is None or same_source(slot.config, config)
        if slot.serving and not slot.task and not same:
            raise Conflict(
                f"model {slot.name!r} is loaded from {slot.config.shown_source!r}; swap it instead"
            )
        if slot.task and (slot.serving or not same):
            await self._end_stuck(slot)
        pinned_before = slot.pinned
        if pin is not None:  # before it serves, because a serving version may be evicted at once
            slot.pinned = pin
        if slot.serving:
            return
        try:
            with self._registry.waiting(slot):
                await asyncio.shield(slot.task or self._transitions.load(slot, config or slot.config))
        except SIEError:
            slot.pinned = pinned_before
            raise

    def _slot_to_load(self, name: str, config: ModelConfig | None) -> Slot:
        if config is None or self._table.find(name):
            return self._registry.model_slot(name)
        return self._table.by_id.setdefault(config.id, Slot(config, pinned=config.preload, provisional=True))

    async def swap(self, config: ModelConfig, hold: Hold | None = None) -> None:
        """Replace the serving version. The new version must load, work and have all outputs of the old one.

        `hold` is awaited before the switch. A model that is not loaded is loaded instead.

        Raises:
            ModelNotFound, Conflict
            ModelLoadFailed, ResourceExhausted: the old version keeps serving.
        """
        slot = self._registry.model_slot(config.id)
        if slot.task:
            await self._end_stuck(slot)
        if slot.serving is None:
            await self.load(config.id, config)
        else:
            await asyncio.shield(self._transitions.swap(slot, config, hold))

    async def unload(self, name: str) -> None:
        """Unpin the model, finish its running requests and free its memory. Do nothing if it is not loaded.

        Raises:
            ModelNotFound
            Conflict: a load or swap is running and makes progress.
        """
        slot = self._registry.model_slot(name)
        if slot.task and not slot.unloading:
            await self._end_stuck(slot)
        slot.pinned = False
        if slot.serving or slot.task:
            await asyncio.shield(slot.task or self._table.unload(slot))

    async def _end_stuck(self, slot: Slot) -> None:
        """Give up a load or swap that makes no progress, so that the operator can do something else with the model.

        Raises:
            Conflict: it makes progress, or it is an unload.
        """
        progress = slot.progress
        if slot.task is None or progress is None or progress.idle_s() < PATIENCE_S:
            raise _busy(slot)
        progress.give_up(ModelLoading(f"an operator has ended the load of {slot.name!r}", retry_after_s=1))
        await asyncio.wait([slot.task])
        if slot.task:
            raise _busy(slot)

    async def load_adapter(self, model: str, name: str, source: str) -> None:
        """Attach an adapter, see `Adapters.add`. Its model is loaded first if necessary.

        The files are fetched before the model is leased. Otherwise an unload, and every request that waits for it,
        would wait for the download.
        """
        stamp = await self._registry.adapters.fetch(self._registry.model_slot(model), name, source)
        while (slot := self._registry.model_slot(model)).serving is None:
            await self.load(model)
        async with self._registry.lease_version(model) as version:
            await self._registry.adapters.add(slot, version, name, source, stamp)

    def unload_adapter(self, model: str, name: str) -> None:
        """See `Adapters.remove`."""
        self._registry.adapters.remove(self._registry.model_slot(model), name)

    async def update(self, config: ModelConfig) -> None:
        """Apply a new or changed configuration: swap a loaded model if its weights change.

        If the configuration names the same weights as before, the weights that an admin has loaded since stay.

        Raises:
            ModelLoadFailed, ResourceExhausted: the old version keeps serving; `retry` or the next load uses the new
                configuration.
        """
        slot = self._table.by_id.setdefault(config.id, Slot(config, pinned=config.preload))
        slot.provisional = False  # known from now on, even if a running load fails
        while slot.task:
            await asyncio.wait([slot.task])
        before, slot.configured = slot.configured, config
        if config.problem:
            log.warning("the cascade %s is not served: %s", config.id, config.problem)
        if (config.cascade or slot.config.cascade) and slot.serving:  # the id meant a model before
            await asyncio.wait([self._table.unload(slot)])
        if before and before.weights == config.weights and not slot.pending and not config.cascade:
            current = slot.config
            config = replace(config, source=current.source, revision=current.revision, stamp=current.stamp)
        if slot.serving is None:
            slot.config, slot.error, slot.swap_error = config, None, None
        elif slot.serving.config.weights == config.weights:
            slot.config = slot.serving.config = config
            slot.pending = slot.swap_error = None
            self._registry.adapters.forget_others(slot)
        else:
            slot.pending = config
            await self.swap(config)

    async def retry(self, name: str) -> None:
        """Try a failed update again, unless the model is gone or was loaded otherwise since. Raises as `update`."""
        if (slot := self._table.by_id.get(name)) and slot.pending:
            await self.update(slot.pending)

    async def remove(self, name: str) -> None:
        """Forget a model: new requests do not find it, running requests finish."""
        slot = self._table.by_id.pop(name)
        slot.removed = True
        self._table.removed.add(slot)
        while slot.task:
            await asyncio.wait([slot.task])
        if slot.serving:
            await asyncio.wait([self._table.unload(slot)])
        while slot.versions:  # a replaced version may still have requests
            await self._table.wait_for_change()
        self._table.removed.discard(slot)

    async def unload_idle(self, seconds: float) -> None:
        """Unload models that no request has used for `seconds`; runs until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for name in eviction.idle_for(self._table.allocations(), time.monotonic(), seconds):
                log.info("unloading %s: idle for %.0f s", name, seconds)
                self._table.unload(self._table.by_id[name])


def same_source(one: ModelConfig, other: ModelConfig) -> bool:
    """True when both name the same weights."""
    return one.revision == other.revision and same_place(one.source, other.source)


def _busy(slot: Slot) -> Conflict:
    doing = "unloaded" if slot.unloading else "swapped" if slot.serving else "loaded"
    return Conflict(f"model {slot.name!r} is being {doing}; try again when that has finished")
