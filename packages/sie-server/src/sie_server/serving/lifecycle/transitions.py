"""Loading and swapping a model. Each is a task on the event loop, and a slot runs one task at a time.

Requests and admin callers wait for these tasks. A caller that stops waiting does not end them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sie_server.catalog import ModelConfig
from sie_server.errors import SIEError
from sie_server.serving.lifecycle.adapters import Adapters
from sie_server.serving.lifecycle.budget import MemoryBudget
from sie_server.serving.lifecycle.slots import Slot, Version
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.loading.failures import as_load_error, copy_of
from sie_server.serving.loading.loader import Loader
from sie_server.serving.loading.probe import check_outputs
from sie_server.serving.loading.progress import Progress
from sie_server.serving.metrics import Metrics

log = logging.getLogger("sie_server.registry")
Hold = Callable[[Version, Progress], Awaitable[None]]


class Transitions:
    """Used on the event loop only."""

    def __init__(
        self,
        table: SlotTable,
        loader: Loader,
        budget: MemoryBudget,
        adapters: Adapters,
        metrics: Metrics,
    ) -> None:
        self._table, self._loader, self._budget = table, loader, budget
        self._adapters, self._metrics = adapters, metrics

    def load(self, slot: Slot, config: ModelConfig) -> asyncio.Task[None]:
        """Load a slot that has no version, as `config` says."""
        return self._table.start(slot, self._load(slot, config))

    def swap(self, slot: Slot, config: ModelConfig, hold: Hold | None = None) -> asyncio.Task[None]:
        """Replace the serving version. Before the switch `hold` is awaited; if it raises, the old version stays.

        `hold` gets the new version and the progress of the swap.
        """
        if slot.serving is None:
            raise RuntimeError(f"slot {slot.name!r} serves no version to replace")
        return self._table.start(slot, self._swap(slot, slot.serving, config, hold))

    async def _load(self, slot: Slot, config: ModelConfig) -> None:
        slot.error, slot.attempts = None, slot.attempts + 1
        try:
            version = await self._bring_up(slot, config)
        except SIEError as error:
            if config is slot.config:  # a failure of another source says nothing about this one
                slot.note_failure(copy_of(error), time.monotonic())
            raise
        self._serve(slot, version)

    async def _swap(self, slot: Slot, old: Version, config: ModelConfig, hold: Hold | None) -> None:
        try:
            version = await self._bring_up(slot, config, old)
        except SIEError as error:
            slot.swap_error = error.message
            raise
        if hold:
            try:
                await hold(version, slot.progress or Progress())
            except Exception:
                await self._table.free(slot, version)
                raise
        await self._adapters.carry(slot, old, version)
        # One assignment: no request can see a state between the two versions.
        self._serve(slot, version)
        self._metrics.swaps.labels(slot.name).inc()
        self._table.drain_replaced(slot, old)

    def _serve(self, slot: Slot, version: Version) -> None:
        version.serving_since = time.monotonic()
        slot.config, slot.serving = version.config, version
        slot.error = slot.swap_error = slot.pending = None
        slot.provisional, slot.attempts = False, 0
        self._metrics.loads.labels(slot.name).inc()

    async def _bring_up(self, slot: Slot, config: ModelConfig, old: Version | None = None) -> Version:
        """Return a version that is ready to serve. A version that fails leaves nothing behind."""
        version = Version(config)
        slot.progress = progress = Progress()
        try:
            load = self._fill(slot, version, progress, old)
            await progress.watch(load, f"model {slot.name!r}", self._loader.stall_s)
            seconds, size = time.monotonic() - progress.started, version.nbytes / 2**20
            log.info("loaded %s from %s in %.1f s, %.1f MiB", slot.name, config.source, seconds, size)
            return version
        except Exception as error:
            failure = copy_of(as_load_error(slot.name, error))
        # Outside the handler nothing refers to the tensors of the failed load.
        if not slot.starting:
            log.error("could not load %s: %s", slot.name, failure.message)
        self._metrics.load_failures.labels(slot.name).inc()
        if version in slot.versions:
            await self._table.free(slot, version)
        raise failure

    async def _fill(self, slot: Slot, version: Version, progress: Progress, old: Version | None) -> None:
        log.info("fetching %s from %s", slot.name, version.config.source)
        directory, version.nbytes = await self._loader.fetch(version.config, progress)
        version.outdated = progress.tally.warning
        progress.enter("room", version.nbytes)
        await self._budget.reserve_version(slot, version, may_drain=old is None)
        progress.enter("load")
        version.engine = await self._loader.load(version.config, directory, progress)
        version.nbytes = version.engine.memory_bytes
        await self._budget.settle(slot)
        progress.enter("probe")
        if old and old.engine:
            check_outputs(version.config, old.engine, version.engine)
        await self._loader.probe(version.config, version.engine)
