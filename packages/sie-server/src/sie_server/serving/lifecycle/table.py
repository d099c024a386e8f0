"""All slots, the one task per slot that may change it, and unloading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from sie_server.catalog import ModelConfig
from sie_server.serving.lifecycle.eviction import Allocation
from sie_server.serving.lifecycle.slots import Slot, Version
from sie_server.serving.loading.loader import Loader

log = logging.getLogger("sie_server.registry")


class SlotTable:
    """Used on the event loop only. A caller that stops waiting for a task does not end it."""

    def __init__(self, models: Mapping[str, ModelConfig], loader: Loader) -> None:
        self.by_id = {name: Slot(config, config, config.preload) for name, config in models.items()}
        self.removed: set[Slot] = set()  # unknown to new requests, but still holding memory
        self._loader = loader
        self._changed = asyncio.Event()
        self._draining: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Slot | None:
        """Return the slot of a known model by its id or an alias. An id takes precedence over an alias."""
        if name in self.by_id:
            return self.by_id[name]
        return next((slot for slot in self.by_id.values() if name in slot.config.aliases), None)

    def names(self) -> list[str]:
        """The ids and aliases of all known models."""
        return [name for slot in self.by_id.values() for name in (slot.name, *slot.config.aliases)]

    def all(self) -> list[Slot]:
        """The slots of known models, and of removed models that still hold memory."""
        return [*self.by_id.values(), *self.removed]

    def allocations(self, loading: Slot | None = None) -> list[Allocation]:
        """The memory of all versions. The serving version of the slot that is `loading` another one stays."""
        return [a for slot in self.all() for a in slot.allocations(stays=slot is loading)]

    # ── the one task of a slot ──

    def start(self, slot: Slot, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the task that may change the slot."""
        if slot.task is not None:
            work.close()
            raise RuntimeError(f"slot {slot.name!r} already has a task")
        slot.task = task = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._finish(slot, done))
        return task

    def _finish(self, slot: Slot, task: asyncio.Task[None]) -> None:
        slot.task, slot.progress, slot.unloading = None, None, False
        if not task.cancelled():
            task.exception()  # the slot records it; without this call asyncio reports an unread exception
        if slot.provisional and slot.serving is None and self.by_id.get(slot.name) is slot:
            del self.by_id[slot.name]
        self.wake()

    # ── unloading ──

    def unload(self, slot: Slot) -> asyncio.Task[None]:
        """Take the serving version out of service now, and free it when its last lease has ended."""
        version = slot.serving
        if version is None:
            raise RuntimeError(f"slot {slot.name!r} serves no version")
        slot.serving, slot.unloading = None, True
        if slot.pending:
            slot.config, slot.pending = slot.pending, None
        return self.start(slot, self.drain(slot, version))

    def drain_replaced(self, slot: Slot, version: Version) -> None:
        """Free a replaced version when its last lease has ended; the slot itself is free for other tasks."""
        task = asyncio.create_task(self.drain(slot, version))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def drain(self, slot: Slot, version: Version) -> None:
        """Free a version that takes no new leases, when its last lease has ended."""
        while version.leases:
            await self.wait_for_change()
        await self.free(slot, version)
        log.info("unloaded %s from %s", slot.name, version.config.source)
        self.wake()

    async def free(self, slot: Slot, version: Version) -> None:
        """Free the memory of a version without leases."""
        slot.versions.remove(version)
        await self._loader.free(version.release)

    def close(self) -> None:
        """Cancel the running tasks."""
        running = [slot.task for slot in self.all() if slot.task]
        for task in (*running, *self._draining):
            task.cancel()

    # ── waiting for any change: a lease ended, a task finished ──

    def wake(self) -> None:
        """Wake every coroutine in `wait_for_change`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, seconds: float | None = None) -> None:
        """Wait for a change, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
