"""Model id → slot, and leases. Requests only start loads and wait; one task at a time changes a slot.

              ┌────────────────────── done ─────────────────────┐
              ▼                                                 │
          available ──lease or load──▶ loading ──▶ loaded ──▶ unloading   idle, evicted or unloaded
              ▲                           │         │  ▲
              └──cool-down over── failed ◀┘         └──┘ swap: the new version loads while the old one serves

A lease is a hold on one version, from tokenising to the answer. A version that was replaced or is unloading takes no
new leases, and is freed when its last lease ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from msgspec import structs

from sie_server.catalog import Calibration, CascadeEntry, ModelConfig
from sie_server.config import suggest
from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InvalidInput, ModelLoadFailed, ModelLoading, ModelNotFound, SIEError, shown
from sie_server.serving.lifecycle.adapters import Adapters
from sie_server.serving.lifecycle.budget import MemoryBudget
from sie_server.serving.lifecycle.cascades import cascade_info
from sie_server.serving.lifecycle.slots import Slot, Version
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.lifecycle.transitions import Transitions
from sie_server.serving.loading.failures import BudgetExhausted, copy_of
from sie_server.serving.loading.loader import Loader
from sie_server.wire import ModelInfo, Profile


class Leased(NamedTuple):
    """The engine, and the adapter if the request names one."""

    engine: Engine
    adapter: Adapter | None


class Registry:
    """All models; used on the event loop only."""

    def __init__(
        self,
        table: SlotTable,
        loader: Loader,
        budget: MemoryBudget,
        adapters: Adapters,
        transitions: Transitions,
        wait_s: float,
    ) -> None:
        """`wait_s` is how long a request waits for its model and adapter."""
        self.table, self._loader, self.budget = table, loader, budget
        self.adapters, self.transitions, self._wait_s = adapters, transitions, wait_s

    def __contains__(self, name: str) -> bool:
        return self.table.find(name) is not None

    def info(self, name: str) -> ModelInfo:
        """Describe one model, under the name of the request, which may be MODEL:ADAPTER. Never loads the model.

        Raises:
            ModelNotFound, AdapterNotFound: with the names that look similar.
        """
        model, adapter = self.resolve(name)
        slot = self.slot(model)
        if adapter is not None:
            self.adapters.names.check(self._scored_last(slot), adapter)
        info = self._cascade_info(slot) if slot.config.cascade else slot.info(self.adapters.names.infos(slot))
        return structs.replace(info, name=name, id=name, parent=model if adapter is not None else None)

    def _cascade_info(self, slot: Slot) -> ModelInfo:
        found = [self.table.find(stage.model) for stage in slot.config.stages]
        known = [one for one in found if one and not one.config.cascade]
        stages = [one.info(self.adapters.names.infos(one)) for one in known]
        return cascade_info(slot.config, stages if len(stages) == len(found) else [])

    def _scored_last(self, slot: Slot) -> Slot:
        """Return the slot of the last stage of a cascade; a model is its own."""
        stages = slot.config.stages
        return (stages and self.table.find(stages[-1].model)) or slot

    def resolve(self, name: str) -> tuple[str, str | None]:
        """Split MODEL:ADAPTER of a known model, and replace an alias by the model's id. Other names are unchanged."""
        if slot := self.table.find(name):
            return slot.name, None
        model, _, adapter = name.rpartition(":")
        if slot := self.table.find(model):
            return slot.name, adapter
        return name, None

    def profiles(self, name: str) -> Mapping[str, Profile]:
        """The values of `options.profile` in addition to `default`.

        Raises:
            ModelNotFound
        """
        return self.slot(name).config.profiles

    def calibration(self, name: str) -> Calibration | None:
        """The function of `normalize: calibrated`. Raises as `profiles`."""
        return self.slot(name).config.calibration

    def infos(self) -> list[ModelInfo]:
        """Describe all models: those named at start in their order, then those that are loaded, then all others by id.

        A client that takes the first model of the list gets the one that answers requests without a model.
        """
        named = self.configured()
        others = [slot for slot in self.table.by_id.values() if not slot.config.preload]
        others.sort(key=lambda slot: (slot.serving is None, slot.name))
        return [self.info(name) for name in (*named, *(slot.name for slot in others))]

    def configured(self) -> list[str]:
        """Return the ids of the models that are named at start, in their order."""
        return [slot.name for slot in self.table.by_id.values() if slot.config.preload]

    def slot(self, name: str) -> Slot:
        """Return the slot of a model, by its id or an alias.

        Raises:
            ModelNotFound: with the ids that look similar.
        """
        slot = self.table.find(name)
        if slot is None:
            hint = suggest(name, self.table.names())
            raise ModelNotFound(
                f"model {shown(name)} is not known here{hint or '; GET /v1/models lists the models'}"
            )
        return slot

    def model_slot(self, name: str) -> Slot:
        """Return the slot of a model that has weights.

        Raises:
            ModelNotFound: as `slot`.
            InvalidInput: it is a cascade.
        """
        slot = self.slot(name)
        if stages := slot.config.stages:
            names = ", ".join(dict.fromkeys(stage.model for stage in stages))
            raise InvalidInput(
                f"model {slot.name!r} is a cascade, which has no weights and only scores; name one of its stages "
                f"({names}) - at `$.model`"
            )
        return slot

    def cascade(self, name: str) -> CascadeEntry | None:
        """Return the stages of a cascade; None for a model.

        Raises:
            ModelNotFound: as `slot`.
            ModelLoadFailed: the cascade cannot work.
        """
        slot = self.slot(name)
        if slot.config.problem:
            raise ModelLoadFailed(
                f"the cascade {slot.name!r} cannot be served: {slot.config.problem}", permanent=True
            )
        return slot.config.cascade

    def add(self, config: ModelConfig) -> None:
        """Make a model known, unless its id is."""
        self.table.by_id.setdefault(config.id, Slot(config))

    def stamp(self, name: str, leased: Leased, adapter: str | None) -> str:
        """Return a text that is equal for equal weights and adapters, in every process that reads the same files."""
        version = next(one for one in self.slot(name).versions if one.engine is leased.engine)
        attached = version.attached.get(adapter) if adapter else None
        parts = (version.config.weights, attached and (attached.source, attached.stamp))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    # ── requests ──

    @asynccontextmanager
    async def lease(self, name: str, adapter: str | None = None) -> AsyncIterator[Leased]:
        """Keep the serving version, and the adapter, while the block runs. Both are loaded first if necessary.

        Raises:
            ModelNotFound, AdapterNotFound, ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        slot = self.model_slot(name)
        if adapter is not None:  # an unknown name must not cost a load
            self.adapters.names.check(slot, adapter)
        deadline = time.monotonic() + self._wait_s  # for the model and its adapter together
        async with self.lease_version(name) as version:
            if version.engine is None:
                raise RuntimeError(f"the serving version of {name!r} has no engine")
            if adapter is None:
                yield Leased(version.engine, None)
                return
            left = max(0.0, deadline - time.monotonic())
            async with self.adapters.lease(self.slot(name), version, adapter, left) as attached:
                yield Leased(version.engine, attached)

    @asynccontextmanager
    async def lease_version(self, name: str) -> AsyncIterator[Version]:
        """Keep the serving version, without an adapter, while the block runs."""
        version = self.model_slot(name).serving or await self._wait_for_version(name)
        version.leases += 1
        version.last_use = time.monotonic()
        try:
            yield version
        finally:
            version.leases -= 1
            version.last_use = time.monotonic()
            if not version.leases:
                self.table.wake()

    async def _wait_for_version(self, name: str) -> Version:
        """Wait for the load. The load continues when no request waits for it any longer."""
        deadline = time.monotonic() + self._wait_s
        while (slot := self.slot(name)).serving is None:
            now, joined = time.monotonic(), slot.task is not None
            if slot.task is None and slot.error and now < slot.retry_at:
                raise copy_of(slot.error)
            task = slot.task or self.transitions.load(slot, slot.config)
            with self.waiting(slot):
                done, _ = await asyncio.wait([task], timeout=max(0.0, deadline - now))
            if not done:
                raise self._still_loading(slot)
            # A load that ran out of budget may have started long before this request, so it is tried again.
            if slot.error and not (joined and isinstance(slot.error, BudgetExhausted)):
                raise copy_of(slot.error)
        return slot.serving

    @contextmanager
    def waiting(self, slot: Slot) -> Iterator[None]:
        """Protect the version that the caller waits for from eviction until the caller has a lease on it."""
        slot.waiting += 1
        try:
            yield
        finally:
            slot.waiting -= 1
            if not slot.waiting:
                self.table.wake()

    def _still_loading(self, slot: Slot) -> SIEError:
        progress = slot.progress
        if progress is None:  # the previous version is unloading and still has requests to finish
            return ModelLoading(
                f"model {slot.name!r} is unloading and will be loaded again", retry_after_s=self._wait_s
            )
        if progress.phase == "room":
            return self.budget.exhausted(f"model {slot.name!r}", progress.tally.total or 0, self._wait_s)
        now = time.monotonic()
        remaining = max(1.0, progress.remaining_s(self._loader.bytes_per_second, now))
        return ModelLoading(
            f"model {slot.name!r} is loading ({progress.phase}), {now - progress.started:.0f} s so far; "
            f"try again in about {remaining:.0f} s",
            retry_after_s=remaining,
        )

    def close(self) -> None:
        """Cancel the running loads, swaps and unloads."""
        self.table.close()
