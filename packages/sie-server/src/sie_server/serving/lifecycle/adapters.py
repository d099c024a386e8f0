"""LoRA adapters of the models that serve: attached on first use, once however many ask, a bounded number per model.

An adapter belongs to one version of a model. Requests hold what they use through their job, so one that is dropped
here is gone when the last of them is answered; nobody waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sie_server.engine.engine import Engine
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import Conflict, ModelLoading, SIEError
from sie_server.serving.lifecycle.adapter_names import AdapterNames
from sie_server.serving.lifecycle.loader import Loader, as_load_error
from sie_server.serving.lifecycle.slots import Attached, NoRoom, Slot, Version, cool_down_s, copy_of
from sie_server.serving.metrics import Metrics

log = logging.getLogger("sie_server.adapters")
# sets the bytes aside for one that is about to be loaded; who gives way for it is not decided here
MakeRoom = Callable[[Slot, Version, Attached, int], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """How many adapters a version keeps, and how long a request waits for it and its model."""

    most: int
    wait_s: float


class Adapters:
    """All adapters; used on the event loop only."""

    def __init__(
        self,
        loader: Loader,
        limits: Limits,
        metrics: Metrics,
        configured: Mapping[str, Mapping[str, str]],
    ) -> None:
        """`configured`: model → adapter → source, as the operator said at start."""
        self._loader, self._limits, self._metrics = loader, limits, metrics
        self.names = AdapterNames(configured)
        # set by `Transitions`, which knows what else holds memory, and who waits for it
        self.make_room: MakeRoom
        self.pulse: Callable[[], None]

    @asynccontextmanager
    async def lease(self, slot: Slot, version: Version, name: str, wait_s: float) -> AsyncIterator[Adapter]:
        """The adapter, attached first if need be; it does not give way to others for as long as the block runs.

        Raises:
            AdapterNotFound: with the names that look alike.
            ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        held = self._held(slot, version, name)
        held.leases += 1
        try:
            yield await self._wait(slot, version, held, wait_s)
        finally:
            held.leases -= 1

    def _held(self, slot: Slot, version: Version, name: str) -> Attached:
        source = self.names.check(slot, name, version.config)
        held = version.attached.get(name)
        if held and held.source != source:  # the name means another adapter now
            self._drop(version, held)
            held = None
        if held is None:
            held = version.attached[name] = Attached(name, source)
        held.last_use = time.monotonic()
        return held

    async def fetch(self, slot: Slot, name: str, source: str) -> str:
        """Download what `add` is about to attach, if need be; the stamp of its files.

        Raises:
            Conflict: the name is taken by another source.
            ModelLoadFailed
        """
        self.names.check_source(slot, name, source)
        try:
            return (await self._loader.fetch_adapter(source)).stamp
        except Exception as error:
            raise self._failed(slot, name, error) from None

    async def add(self, slot: Slot, version: Version, name: str, source: str, stamp: str) -> None:
        """Attach an adapter under a new name, however long it takes; nothing to do when these files are attached.

        What failed a moment ago is tried again: whoever asks for it here may have mended it.

        Raises:
            Conflict: the name is taken by another source, or was unloaded or replaced meanwhile.
            ModelLoadFailed, ResourceExhausted
        """
        known = self.names.check_source(slot, name, source)
        if not known:
            slot.adapters[name] = source
        held = self._held(slot, version, name)
        if held.adapter and held.stamp != stamp:
            self._drop(version, held)
            held = self._held(slot, version, name)
        if held.task is None:
            held.error = None
        try:
            await self._wait(slot, version, held, None)
        except SIEError:
            # a name that never worked is not known, unless it has come to mean another adapter
            if not known and version.attached.get(name) is held:
                self._forget(slot, name)
            raise
        if version.attached.get(name) is not held:
            raise Conflict(
                f"adapter {name!r} of {slot.name!r} was unloaded or replaced while it was loading from {source!r}; "
                "load it again if it is still wanted"
            )

    def remove(self, slot: Slot, name: str) -> None:
        """Free an adapter; one that an admin caller brought is unknown from now on.

        Raises:
            AdapterNotFound
        """
        self.names.check(slot, name)
        self._forget(slot, name)

    def _forget(self, slot: Slot, name: str) -> None:
        slot.adapters.pop(name, None)
        for version in slot.versions:  # one that is about to serve may have it, too
            if name in version.attached:
                self._drop(version, version.attached[name])

    def forget_others(self, slot: Slot) -> None:
        """Free what a changed configuration does not name any more, or means another adapter by."""
        for version in slot.versions:
            sources = self.names.sources(slot, version.config)
            for held in [h for h in version.attached.values() if sources.get(h.name) != h.source]:
                self._drop(version, held)

    async def carry(self, slot: Slot, old: Version, new: Version) -> None:
        """Attach to a version that is about to serve what the one before it has; what does not fit is only logged.

        Whoever asks for such an adapter is told why it cannot be had. Where not all find room, those used last do.
        """
        tried: set[str] = set()
        # one at a time, because others are loaded and unloaded meanwhile
        while there := [h for h in old.attached.values() if (h.adapter or h.task) and h.name not in tried]:
            held = max(there, key=lambda held: held.last_use)
            tried.add(held.name)
            try:
                again = self._held(slot, new, held.name)
                await self._wait(slot, new, again, None)
                again.last_use = held.last_use
            except SIEError as error:
                log.warning(
                    "the new version of %s is without adapter %s: %s", slot.name, held.name, error.message
                )

    async def _wait(self, slot: Slot, version: Version, held: Attached, seconds: float | None) -> Adapter:
        """The adapter, once it is attached; `seconds` None: however long that takes."""
        if held.adapter:
            return held.adapter
        began, joined = time.monotonic(), held.task is not None
        if held.task is None:
            if held.error and began < held.retry_at:
                raise copy_of(held.error)
            held.error = None
            held.task = asyncio.create_task(self._attach(slot, version, held))
        task = held.task
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done and held.late:
            raise copy_of(held.late)
        if not done:
            raise ModelLoading(
                f"adapter {held.name!r} of {slot.name!r} is loading",
                retry_after_s=max(1.0, self._limits.wait_s),
            )
        # of this load: another one may have begun since
        outcome = task.result()
        if isinstance(outcome, NoRoom) and joined:  # whoever began it had waited for longer
            left = None if seconds is None else max(0.0, began + seconds - time.monotonic())
            return await self._wait(slot, version, held, left)
        if isinstance(outcome, SIEError):
            raise copy_of(outcome)
        return outcome

    async def _attach(self, slot: Slot, version: Version, held: Attached) -> Adapter | SIEError:
        try:
            adapter = await self._load(slot, version, held)
        except Exception as error:
            held.nbytes, held.error = 0, self._failed(slot, held.name, error)
            held.retry_at = time.monotonic() + cool_down_s(held.error)
            return held.error
        finally:
            held.task, held.late = None, None
            self.pulse()
        held.adapter, held.nbytes, held.last_use = adapter, adapter.nbytes, time.monotonic()
        if version.attached.get(held.name) is held:  # it may have been unloaded meanwhile
            self._metrics.adapter_loads.labels(slot.name).inc()
            size = adapter.nbytes / 2**20
            log.info("loaded %s:%s from %s, %.1f MiB", slot.name, held.name, held.source, size)
            there = sorted((h for h in version.attached.values() if h.adapter), key=lambda h: h.last_use)
            self.give_way(slot, version, [h.name for h in there[: max(0, len(there) - self._limits.most)]])
        return adapter

    async def _load(self, slot: Slot, version: Version, held: Attached) -> Adapter:
        directory, held.stamp = await self._loader.fetch_adapter(held.source)
        need = await self._loader.adapter_bytes(_engine(slot, version), directory)
        await self.make_room(slot, version, held, need)
        adapter = await self._loader.attach(version.config, engine := _engine(slot, version), directory)
        await self._loader.probe(version.config, engine, adapter)
        return adapter

    def _failed(self, slot: Slot, name: str, error: Exception) -> SIEError:
        """What to answer, without a hold on the tensors of the failed load."""
        failure = copy_of(as_load_error(f"{slot.name}:{name}", error))
        log.error("could not load %s:%s: %s", slot.name, name, failure.message)
        self._metrics.adapter_failures.labels(slot.name).inc()
        return failure

    def give_way(self, slot: Slot, version: Version, names: Iterable[str]) -> None:
        """Drop adapters to make room; requests that have one finish with it, and then its memory is free."""
        for name in names:
            log.info("unloading adapter %s of %s to make room", name, slot.name)
            self._metrics.adapter_evictions.labels(slot.name).inc()
            self._drop(version, version.attached[name])

    def _drop(self, version: Version, held: Attached) -> None:
        del version.attached[held.name]
        if held.adapter and version.engine:
            version.engine.detach(held.adapter)
        self.pulse()


def _engine(slot: Slot, version: Version) -> Engine:
    if version.engine is None:  # nobody waits for the adapter any more, so nothing has kept its model
        raise ModelLoading(f"model {slot.name!r} was unloaded while an adapter was loading", retry_after_s=1)
    return version.engine
