"""LoRA adapters of loaded models: attached on the first request, once for all requests, a bounded number per model.

An adapter belongs to one version of a model. A request keeps its adapter through its job. So a dropped adapter is free
when its last request has been answered, and dropping does not wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sie_server.catalog.revisions import is_path
from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import Conflict, ModelLoading, SIEError
from sie_server.serving.lifecycle.adapter_names import AdapterNames
from sie_server.serving.lifecycle.budget import MemoryBudget
from sie_server.serving.lifecycle.slots import AttachedAdapter, Slot, Version
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.loading.failures import BudgetExhausted, as_load_error, cool_down_s, copy_of
from sie_server.serving.loading.loader import Loader
from sie_server.serving.loading.progress import Progress
from sie_server.serving.metrics import Metrics

log = logging.getLogger("sie_server.adapters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """The number of adapters that a version keeps, and two times in seconds."""

    most: int
    wait_s: float  # how long a request waits for its model and adapter
    look_s: float  # how often the files of an adapter in use are compared; 0: never


class Adapters:
    """All adapters; used on the event loop only."""

    def __init__(
        self,
        table: SlotTable,
        loader: Loader,
        budget: MemoryBudget,
        limits: Limits,
        configured: Mapping[str, Mapping[str, str]],
        metrics: Metrics,
    ) -> None:
        """`configured`: model → adapter → source, from the operator's configuration."""
        self._table, self._loader, self._budget = table, loader, budget
        self._limits, self._metrics = limits, metrics
        self.names = AdapterNames(configured)

    @asynccontextmanager
    async def lease(self, slot: Slot, version: Version, name: str, wait_s: float) -> AsyncIterator[Adapter]:
        """Attach the adapter if necessary, and keep it attached while the block runs.

        Raises:
            AdapterNotFound: with the names that look similar.
            ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        attached = self._entry(slot, version, name)
        attached.leases += 1
        self._look_at(slot, version, attached)
        try:
            yield await self._wait(slot, version, attached, wait_s)
        finally:
            attached.leases -= 1
            self._table.wake()  # the adapter may be dropped now if another one needs memory

    def _entry(self, slot: Slot, version: Version, name: str) -> AttachedAdapter:
        source = self.names.check(slot, name, version.config)
        attached = version.attached.get(name)
        if attached and attached.source != source:  # the name means another adapter now
            self._drop(version, attached)
            attached = None
        if attached is None:
            attached = version.attached[name] = AttachedAdapter(name, source)
        attached.last_use = time.monotonic()
        return attached

    async def fetch(self, slot: Slot, name: str, source: str) -> str:
        """Download the adapter that `add` will attach, if it is not local. Return the stamp of its files.

        Raises:
            Conflict: the name already means another source.
            ModelLoadFailed
        """
        self.names.check_source(slot, name, source)
        progress = Progress()
        slot.fetching[name] = source, progress
        try:
            return (
                await self._watched(slot, name, progress, self._loader.fetch_adapter(source, progress))
            ).stamp
        except Exception as error:
            raise self._failed(slot, name, error) from None
        finally:
            if slot.fetching.get(name, (None, None))[1] is progress:
                del slot.fetching[name]

    async def _watched(
        self, slot: Slot, name: str, progress: Progress, work: Coroutine[Any, Any, Result]
    ) -> Result:
        return await progress.watch(work, f"adapter '{slot.name}:{name}'", self._loader.stall_s)

    async def add(self, slot: Slot, version: Version, name: str, source: str, stamp: str) -> None:
        """Attach an adapter under a new name, without a time limit. Do nothing if these files are already attached.

        A load that failed a moment ago is tried again, because the operator may have corrected the files.

        Raises:
            Conflict: the name already means another source, or was unloaded or replaced during the load.
            ModelLoadFailed, ResourceExhausted
        """
        known = self.names.check_source(slot, name, source)
        if not known:
            slot.adapters[name] = source
        attached = self._entry(slot, version, name)
        if attached.adapter and attached.stamp != stamp:
            self._drop(version, attached)
            attached = self._entry(slot, version, name)
        if attached.task is None:
            attached.error = None
        try:
            await self._wait(slot, version, attached, None)
        except SIEError:
            # Forget a name that never worked, unless it means another adapter by now.
            if not known and version.attached.get(name) is attached:
                self._forget(slot, name)
            raise
        if version.attached.get(name) is not attached:
            raise Conflict(
                f"adapter {name!r} of {slot.name!r} was unloaded or replaced while it was loading from {source!r}; "
                "load it again if you still need it"
            )

    def remove(self, slot: Slot, name: str) -> None:
        """Free an adapter. The name of an adapter from an admin caller becomes unknown.

        Raises:
            AdapterNotFound
        """
        self.names.check(slot, name)
        self._forget(slot, name)

    def _look_at(self, slot: Slot, version: Version, attached: AttachedAdapter) -> None:
        """Start to compare the files of an adapter in use with those that were attached, if the last look is old."""
        now, pause = time.monotonic(), self._limits.look_s
        due = attached.adapter and attached.look is None and pause and now - attached.looked_at >= pause
        if due and is_path(attached.source):
            attached.look = asyncio.create_task(self._look(slot, version, attached))

    async def _look(self, slot: Slot, version: Version, attached: AttachedAdapter) -> None:
        """Replace an adapter whose files have changed, when two looks agree, so that no half-written file is read.

        Requests use the attached adapter until its replacement is ready, and beyond if that fails.
        """
        try:
            found = await self._loader.fetch_adapter(attached.source, Progress())
            before, attached.changed_to = attached.changed_to, found.stamp
            if found.stamp in (attached.stamp, attached.failed_stamp) or found.stamp != before:
                return
            fresh = AttachedAdapter(attached.name, attached.source, last_use=attached.last_use)
            outcome = await self._attach(slot, version, fresh)
            if isinstance(outcome, SIEError):
                attached.failed_stamp = found.stamp
                log.warning("%s:%s keeps its earlier files", slot.name, attached.name)
            elif version.attached.get(attached.name) is attached:
                self._drop(version, attached)
                version.attached[attached.name] = fresh
                log.info("replaced %s:%s, whose files have changed", slot.name, attached.name)
        except SIEError as error:  # the directory is gone; the next look may find it
            log.debug("cannot look at %s:%s: %s", slot.name, attached.name, error.message)
        finally:
            attached.look, attached.looked_at = None, time.monotonic()

    def _forget(self, slot: Slot, name: str) -> None:
        slot.adapters.pop(name, None)
        for version in slot.versions:  # a version that is about to serve may have it as well
            if name in version.attached:
                self._drop(version, version.attached[name])

    def forget_others(self, slot: Slot) -> None:
        """Free the adapters that a changed configuration no longer names, or names with another source."""
        for version in slot.versions:
            sources = self.names.sources(slot, version.config)
            for attached in [a for a in version.attached.values() if sources.get(a.name) != a.source]:
                self._drop(version, attached)

    async def carry(self, slot: Slot, old: Version, new: Version) -> None:
        """Attach the adapters of the old version to the version that is about to serve; failures are only logged.

        A later request for a missing adapter gets the reason. If not all of them fit, those used last are attached.
        """
        tried: set[str] = set()
        # The list is read again after every step, because adapters are loaded and unloaded while this runs.
        while left := [a for a in old.attached.values() if (a.adapter or a.task) and a.name not in tried]:
            latest = max(left, key=lambda a: a.last_use)
            tried.add(latest.name)
            try:
                attached = self._entry(slot, new, latest.name)
                await self._wait(slot, new, attached, None)
                attached.last_use = latest.last_use
            except SIEError as error:
                log.warning(
                    "the new version of %s lacks adapter %s: %s", slot.name, latest.name, error.message
                )

    async def _wait(
        self, slot: Slot, version: Version, attached: AttachedAdapter, seconds: float | None
    ) -> Adapter:
        """Return the adapter when it is attached; `seconds` None means no time limit."""
        if attached.adapter:
            return attached.adapter
        started, joined = time.monotonic(), attached.task is not None
        if attached.task is None:
            if attached.error and started < attached.retry_at:
                raise copy_of(attached.error)
            attached.error = None
            attached.task = asyncio.create_task(self._attach(slot, version, attached))
        task = attached.task
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done and attached.timeout_error:
            raise copy_of(attached.timeout_error)
        if not done:
            raise ModelLoading(
                f"adapter {attached.name!r} of {slot.name!r} is loading",
                retry_after_s=max(1.0, self._limits.wait_s),
            )
        outcome = task.result()  # not `attached.error`: another load may have started since
        if (
            isinstance(outcome, BudgetExhausted) and joined
        ):  # that load had already waited before this request
            left = None if seconds is None else max(0.0, started + seconds - time.monotonic())
            return await self._wait(slot, version, attached, left)
        if isinstance(outcome, SIEError):
            raise copy_of(outcome)
        return outcome

    async def _attach(self, slot: Slot, version: Version, attached: AttachedAdapter) -> Adapter | SIEError:
        attached.progress = progress = Progress()
        try:
            load = self._load(slot, version, attached, progress)
            adapter = await self._watched(slot, attached.name, progress, load)
        except Exception as error:
            attached.nbytes, attached.error = 0, self._failed(slot, attached.name, error)
            attached.retry_at = time.monotonic() + cool_down_s(attached.error)
            return attached.error
        finally:
            attached.task, attached.timeout_error, attached.progress = None, None, None
            self._table.wake()
        attached.adapter, attached.nbytes, attached.last_use = adapter, adapter.nbytes, time.monotonic()
        if version.attached.get(attached.name) is attached:  # it may have been unloaded during the load
            self._metrics.adapter_loads.labels(slot.name).inc()
            size = adapter.nbytes / 2**20
            log.info("loaded %s:%s from %s, %.1f MiB", slot.name, attached.name, attached.source, size)
            self._drop_excess(slot, version)
        return adapter

    def _drop_excess(self, slot: Slot, version: Version) -> None:
        """Drop the least recently used adapters beyond the limit."""
        loaded = sorted((a for a in version.attached.values() if a.adapter), key=lambda a: a.last_use)
        for attached in loaded[: max(0, len(loaded) - self._limits.most)]:
            self._budget.drop_adapter(slot, attached.name, version)

    async def _load(
        self, slot: Slot, version: Version, attached: AttachedAdapter, progress: Progress
    ) -> Adapter:
        fetched = await self._loader.fetch_adapter(attached.source, progress)
        attached.stamp = fetched.stamp
        need = await self._loader.adapter_bytes(_engine(slot, version), fetched, progress)
        progress.enter("room", need)
        await self._budget.reserve_adapter(slot, version, attached, need)
        progress.enter("load")
        adapter = await self._loader.attach(version.config, _engine(slot, version), fetched, progress)
        progress.enter("probe")
        await self._loader.probe(version.config, _engine(slot, version), adapter)
        return adapter

    def _failed(self, slot: Slot, name: str, error: Exception) -> SIEError:
        """Log and count the failure; return the error for the caller, without references to the failed tensors."""
        failure = copy_of(as_load_error(f"{slot.name}:{name}", error))
        log.error("could not load %s:%s: %s", slot.name, name, failure.message)
        self._metrics.adapter_failures.labels(slot.name).inc()
        return failure

    def _drop(self, version: Version, attached: AttachedAdapter) -> None:
        version.drop(attached.name)
        self._table.wake()


def _engine(slot: Slot, version: Version) -> Engine:
    if version.engine is None:  # every caller has left, so no lease has kept the model loaded
        raise ModelLoading(f"model {slot.name!r} was unloaded while an adapter was loading", retry_after_s=1)
    return version.engine
