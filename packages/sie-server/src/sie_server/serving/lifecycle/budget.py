"""The memory budget of all models and adapters: a load reserves its bytes here before it reads any weights.

A load waits until its bytes fit. Idle models are evicted for it, then unused adapters are dropped. Models that are in
use without a pause are drained after a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from sie_server.errors import ModelLoadFailed, SIEError
from sie_server.serving.lifecycle import eviction
from sie_server.serving.lifecycle.slots import AttachedAdapter, Slot, Version
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.loading.failures import BudgetExhausted
from sie_server.serving.metrics import Metrics

log = logging.getLogger("sie_server.registry")
SETTING = "memory_budget_mb"
# The share of load_wait_s that a load waits for free memory before a model in use is drained for it. A model that
# serves is drained only after it has served for as long.
PATIENCE = 0.25


@dataclass(frozen=True)
class MemoryRequest:
    """Bytes that a load needs, and what may be unloaded for it."""

    what: str  # the name in messages
    slot: Slot  # its serving version stays
    need: int  # bytes
    model_bytes: int = 0  # for an adapter: the bytes of its model, which stays
    may_drain: bool = True  # models in use
    may_drop: bool = True  # unused adapters of models that stay
    adapter: AttachedAdapter | None = None


class MemoryBudget:
    """Used on the event loop only."""

    def __init__(
        self,
        table: SlotTable,
        total_bytes: int,
        wait_s: float,
        metrics: Metrics,
        device_bytes: int | None = None,
    ) -> None:
        """`wait_s` is how long a load waits until its bytes fit.

        `device_bytes` is what a GPU has for models and batches. It must hold the models and a batch of the model whose
        batches take most, so the budget may become smaller than `total_bytes`.
        """
        self._total_bytes, self._device_bytes = total_bytes, device_bytes
        self._table, self._metrics = table, metrics
        self._wait_s, self._patience_s = wait_s, PATIENCE * wait_s

    @property
    def total_bytes(self) -> int:
        """Bytes for all models and adapters: those configured, less what batches need beyond the rest of a GPU."""
        if self._device_bytes is None:
            return self._total_bytes
        engines = [version.engine for slot in self._table.all() for version in slot.versions]
        reserve = max((engine.activation_bytes for engine in engines if engine), default=0)
        return max(0, min(self._total_bytes, self._device_bytes - reserve))

    async def reserve_version(self, slot: Slot, version: Version, *, may_drain: bool) -> None:
        """Reserve the bytes of a version and add it to its slot.

        Raises:
            ModelLoadFailed: the bytes never fit.
            BudgetExhausted: they did not fit in time.
        """
        request = MemoryRequest(f"model {slot.name!r}", slot, version.nbytes, may_drain=may_drain)
        plan = await self._wait_for_plan(request, self._wait_s)
        slot.versions.append(version)
        await self._apply(plan)

    async def reserve_adapter(
        self, slot: Slot, version: Version, adapter: AttachedAdapter, need: int
    ) -> None:
        """Reserve the bytes of an adapter.

        An adapter of a version that does not serve yet gets only what idle models leave, without waiting. The first
        request for it loads it otherwise.

        Raises:
            ModelLoadFailed: the bytes never fit.
            BudgetExhausted: they did not fit in time.
        """
        serves = version is slot.serving
        request = MemoryRequest(
            f"adapter '{slot.name}:{adapter.name}'",
            slot,
            need,
            model_bytes=version.nbytes,
            may_drain=serves,
            may_drop=serves,
            adapter=adapter,
        )
        plan = await self._wait_for_plan(request, self._wait_s if serves else 0.0)
        adapter.nbytes, adapter.timeout_error = need, None
        await self._apply(plan)

    def room(self, unused_s: float) -> int:
        """Return the bytes that are free or held by models that no request has used for `unused_s`."""
        return eviction.room(self._table.allocations(), self.total_bytes, time.monotonic(), unused_s)

    def longest_unused_s(self) -> float:
        """Return for how long the model that is evicted first has not been used."""
        return eviction.longest_unused(self._table.allocations(), time.monotonic())

    async def settle(self, slot: Slot) -> None:
        """Evict idle models if a loaded version takes more bytes than it reserved."""
        plan = eviction.make_room(self._table.allocations(slot), self.total_bytes, 0)
        await self._evict(plan.evict)

    async def _wait_for_plan(self, request: MemoryRequest, seconds: float) -> eviction.Plan:
        """Return a plan that fits, as soon as there is one. The caller reserves and applies it without awaiting.

        Two models that are in use without a pause would keep a third one from ever loading. So a request that
        `may_drain` has them drained after `_patience_s`.
        """
        started = time.monotonic()
        while not (plan := self._plan(request)).fits:
            waited = time.monotonic() - started
            if request.need + request.model_bytes > self.total_bytes or not plan.possible:
                raise self._never_fits(request)
            error = self.exhausted(request.what, request.need, waited)
            if waited >= seconds:
                raise error
            if request.adapter:
                request.adapter.timeout_error = error
            if request.may_drain and waited >= self._patience_s:
                self._drain_for(request, plan.drain)
            await self._table.wait_for_change(min(self._patience_s, seconds - waited))
        return plan

    def _plan(self, request: MemoryRequest) -> eviction.Plan:
        droppable = []
        if request.may_drop:
            slots = self._table.by_id.values()
            droppable = [a for slot in slots for a in slot.droppable_adapters(stays=slot is request.slot)]
        return eviction.make_room(
            self._table.allocations(request.slot), self.total_bytes, request.need, droppable
        )

    def _drain_for(self, request: MemoryRequest, names: list[str]) -> None:
        now = time.monotonic()
        for name in names:
            slot = self._table.by_id[name]
            if slot.serving and now - slot.serving.serving_since >= self._patience_s:
                log.info("draining %s to make room for %s", name, request.what)
                self._metrics.evictions.labels(name).inc()
                self._table.unload(slot)

    async def _apply(self, plan: eviction.Plan) -> None:
        for label in plan.drop:
            name, _, adapter = label.rpartition(":")
            self.drop_adapter(self._table.by_id[name], adapter)
        await self._evict(plan.evict)

    async def _evict(self, names: list[str]) -> None:
        tasks = []
        for name in names:
            log.info("unloading %s to make room", name)
            self._metrics.evictions.labels(name).inc()
            tasks.append(self._table.unload(self._table.by_id[name]))
        if tasks:
            await asyncio.wait(tasks)

    def drop_adapter(self, slot: Slot, name: str, version: Version | None = None) -> None:
        """Drop an adapter of the serving version, or of `version`, to make room."""
        version = version or slot.serving
        if version is None:
            raise RuntimeError(f"slot {slot.name!r} serves no version")
        log.info("unloading adapter %s of %s to make room", name, slot.name)
        self._metrics.adapter_evictions.labels(slot.name).inc()
        version.drop(name)
        self._table.wake()

    # ── errors: both sizes, the models that hold the memory, and the next step ──

    def _never_fits(self, request: MemoryRequest) -> SIEError:
        need, total = _mib(request.need), self._total()
        if request.need + request.model_bytes <= self.total_bytes:
            return BudgetExhausted(
                f"{request.what} needs {need} of {total}, and models that cannot be unloaded hold too "
                f"much: {self._holders()}. Unload one of them or raise {SETTING}",
                retry_after_s=60,
            )
        if request.model_bytes:
            need += f" in addition to the {_mib(request.model_bytes)} of its model"
        return ModelLoadFailed(
            f"{request.what} needs {need}, and the budget for all models is {total}",
            error_class="MemoryBudget",
            permanent=True,
            attempts=1,
        )

    def exhausted(self, what: str, need: int, waited_s: float) -> SIEError:
        """The error while models in use hold the memory. The wait so far is the estimate for Retry-After."""
        return BudgetExhausted(
            f"{what} needs {_mib(need)} of {self._total()}, held by models in use: {self._holders()}",
            retry_after_s=max(1.0, waited_s),
        )

    def _total(self) -> str:
        total, less = self.total_bytes, self._total_bytes - self.total_bytes
        return f"{_mib(total)} ({SETTING}{f' less {_mib(less)} that batches take' if less else ''})"

    def _holders(self) -> str:
        holders = sorted(
            (s for s in self._table.all() if s.memory_bytes), key=lambda slot: -slot.memory_bytes
        )
        return ", ".join(f"{slot.name} {_mib(slot.memory_bytes)}{_remarks(slot)}" for slot in holders)


def _remarks(slot: Slot) -> str:
    adapters = slot.memory_bytes - sum(version.nbytes for version in slot.versions)
    remarks = []
    if slot.pinned:
        remarks.append("pinned")
    if adapters:
        remarks.append(f"{_mib(adapters)} of it adapters")
    return f" ({', '.join(remarks)})" if remarks else ""


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
