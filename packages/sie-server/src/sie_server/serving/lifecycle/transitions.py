"""What changes a slot: load, swap, evict, unload, drain. Each is a task on the event loop, one per slot at a time.

Requests and admin callers wait for these tasks (`serving.lifecycle.registry`); nobody who stops waiting ends one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sie_server.catalog import ModelConfig
from sie_server.errors import SIEError
from sie_server.serving.lifecycle import budget as room
from sie_server.serving.lifecycle import eviction
from sie_server.serving.lifecycle.adapters import Adapters
from sie_server.serving.lifecycle.loader import Loader, as_load_error, check_outputs
from sie_server.serving.lifecycle.slots import Attached, Progress, Slot, Version, copy_of
from sie_server.serving.metrics import Metrics

log = logging.getLogger("sie_server.registry")
# part of load_wait_s that a load waits for a gap, and that a model serves, before a model in use is drained
PATIENCE = 0.25


@dataclass(frozen=True)
class Want:
    """Somebody who looks for room."""

    what: str  # in messages
    slot: Slot
    need: int  # bytes
    beside: int = 0  # bytes of what an adapter cannot do without: its model
    drain: bool = True  # models in use may be told to go
    spare: bool = True  # adapters of models that stay may be told to go
    waiting: Attached | None = None  # for which the requests wait


class Transitions:
    """All slots, and the tasks that change them; used on the event loop only."""

    def __init__(
        self,
        slots: dict[str, Slot],
        loader: Loader,
        wait_s: float,
        budget_bytes: int,
        metrics: Metrics,
        adapters: Adapters,
    ) -> None:
        self.slots = slots
        self.leaving: set[Slot] = set()  # removed, and still holding memory
        self.loader, self._metrics, self._adapters = loader, metrics, adapters
        adapters.make_room, adapters.pulse = self.make_room_for, self.pulse
        self._wait_s, self.budget = wait_s, budget_bytes
        self._changed = asyncio.Event()
        self._draining: set[asyncio.Task[None]] = set()

    def begin_load(self, slot: Slot, config: ModelConfig) -> asyncio.Task[None]:
        """Load a slot that has no version, as `config` says."""
        return self._begin(slot, self._load(slot, config))

    def begin_swap(self, slot: Slot, config: ModelConfig) -> asyncio.Task[None]:
        """Replace the serving version."""
        assert slot.serving is not None
        return self._begin(slot, self._swap(slot, slot.serving, config))

    def begin_unload(self, slot: Slot) -> asyncio.Task[None]:
        """Take the serving version out of service now, and free it when its last lease has ended."""
        version, slot.serving, slot.unloading = slot.serving, None, True
        assert version is not None
        slot.config, slot.wanted = slot.wanted or slot.config, None
        return self._begin(slot, self._drain(slot, version))

    def close(self) -> None:
        """Stop waiting for what is running."""
        running = [slot.task for slot in self.all_slots() if slot.task]
        for task in (*running, *self._draining):
            task.cancel()

    def _begin(self, slot: Slot, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the one task that may change the slot."""
        assert slot.task is None
        slot.task = task = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._ended(slot, done))
        return task

    def _ended(self, slot: Slot, task: asyncio.Task[None]) -> None:
        slot.task, slot.progress, slot.unloading = None, None, False
        if not task.cancelled():
            task.exception()  # noted in the slot; nobody may be waiting for it
        if slot.provisional and slot.serving is None and self.slots.get(slot.name) is slot:
            del self.slots[slot.name]
        self.pulse()

    async def _load(self, slot: Slot, config: ModelConfig) -> None:
        slot.error, slot.attempts = None, slot.attempts + 1
        try:
            version = await self._bring_up(slot, config)
        except SIEError as error:
            if config is slot.config:  # an operator's other source says nothing about this one
                slot.failed(copy_of(error), time.monotonic())
            raise
        self._serve(slot, version)

    async def _swap(self, slot: Slot, old: Version, config: ModelConfig) -> None:
        try:
            version = await self._bring_up(slot, config, old)
        except SIEError as error:
            slot.refused = error.message
            raise
        await self._adapters.carry(slot, old, version)
        # from here on leases are of the new version; there is no moment in between
        self._serve(slot, version)
        self._metrics.swaps.labels(slot.name).inc()
        task = asyncio.create_task(self._drain(slot, old))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    def _serve(self, slot: Slot, version: Version) -> None:
        slot.config, slot.serving, version.loaded = version.config, version, time.monotonic()
        slot.error, slot.refused, slot.wanted, slot.provisional, slot.attempts = None, None, None, False, 0
        self._metrics.loads.labels(slot.name).inc()

    async def _bring_up(self, slot: Slot, config: ModelConfig, old: Version | None = None) -> Version:
        """A version ready to serve; nothing is left of one that fails."""
        version = Version(config)
        slot.progress = progress = Progress()
        try:
            await self._fill(slot, version, progress, old)
            seconds, size = time.monotonic() - progress.started, version.nbytes / 2**20
            log.info("loaded %s from %s in %.1f s, %.1f MiB", slot.name, config.source, seconds, size)
            return version
        except Exception as error:
            failure = copy_of(as_load_error(slot.name, error))
        # outside of the handler nothing holds on to the tensors of the failed load any more
        log.error("could not load %s: %s", slot.name, failure.message)
        self._metrics.load_failures.labels(slot.name).inc()
        if version in slot.versions:
            slot.versions.remove(version)
            await self.loader.free(version)
        raise failure

    async def _fill(self, slot: Slot, version: Version, progress: Progress, old: Version | None) -> None:
        log.info("fetching %s from %s", slot.name, version.config.source)
        directory, need = await self.loader.fetch(version.config, progress)
        version.nbytes = need
        progress.enter("room", need)
        await self._make_room(slot, version, drain=old is None)
        progress.enter("load")
        version.engine = await self.loader.load(version.config, directory, progress)
        version.nbytes = version.engine.memory_bytes
        await self._evict(eviction.make_room(self.held(slot), self.budget, 0).evict)
        if old and old.engine:
            progress.enter("probe")
            check_outputs(version.config, old.engine, version.engine)
            await self.loader.probe(version.config, version.engine)

    async def _make_room(self, slot: Slot, version: Version, *, drain: bool) -> None:
        """Set the version's memory aside, once others have given way."""
        want = Want(f"model {slot.name!r}", slot, version.nbytes, drain=drain)
        plan = await self._wait_for_room(want, self._wait_s)
        slot.versions.append(version)
        await self._free(plan)

    async def make_room_for(self, slot: Slot, version: Version, adapter: Attached, need: int) -> None:
        """Set an adapter's memory aside, once others have given way.

        A version that does not serve yet is given only what idle models leave: what it lacks then is loaded when it is
        asked for.
        """
        what, serves = f"adapter '{slot.name}:{adapter.name}'", version is slot.serving
        want = Want(what, slot, need, beside=version.nbytes, drain=serves, spare=serves, waiting=adapter)
        plan = await self._wait_for_room(want, self._wait_s * serves)
        adapter.nbytes, adapter.late = need, None
        await self._free(plan)

    async def _wait_for_room(self, want: Want, seconds: float) -> eviction.Plan:
        """How to make room, as soon as that is possible; what the plan says is to be done at once.

        With `drain`, models that are in use without a pause have to go after a while; otherwise two busy models would
        keep a third from ever being served. None goes before it has served for a while itself.
        """
        begun, turn = time.monotonic(), PATIENCE * self._wait_s
        while not (plan := self._plan(want)).fits:
            waited = time.monotonic() - begun
            if want.need + want.beside > self.budget or not plan.possible:
                raise room.never(want.what, want.need, self.all_slots(), self.budget, want.beside)
            late = room.none_yet(want.what, want.need, self.all_slots(), self.budget, waited)
            if waited >= seconds:
                raise late
            if want.waiting:
                want.waiting.late = late
            if want.drain and waited >= turn:
                self._drain_for(want, [name for name in plan.drain if self._served_s(name) >= turn])
            await self.change(min(turn, seconds - waited))
        return plan

    def _drain_for(self, want: Want, names: list[str]) -> None:
        self._count_evictions(names)
        for name in names:
            log.info("draining %s to make room for %s", name, want.what)
            self.begin_unload(self.slots[name])

    def _served_s(self, name: str) -> float:
        serving = self.slots[name].serving
        return time.monotonic() - serving.loaded if serving else 0.0

    def _plan(self, want: Want) -> eviction.Plan:
        spare = [h for slot in self.slots.values() for h in slot.spare(stays=slot is want.slot)]
        return eviction.make_room(self.held(want.slot), self.budget, want.need, spare if want.spare else ())

    async def _free(self, plan: eviction.Plan) -> None:
        for part in plan.drop:
            name, _, adapter = part.rpartition(":")
            slot = self.slots[name]
            assert slot.serving is not None
            self._adapters.give_way(slot, slot.serving, [adapter])
        await self._evict(plan.evict)

    async def _evict(self, names: list[str]) -> None:
        self._count_evictions(names)
        for name in names:
            log.info("unloading %s to make room", name)
        if tasks := [self.begin_unload(self.slots[name]) for name in names]:
            await asyncio.wait(tasks)

    def _count_evictions(self, names: list[str]) -> None:
        for name in names:
            self._metrics.evictions.labels(name).inc()

    async def _drain(self, slot: Slot, version: Version) -> None:
        """Free a version that takes no new leases, when its last one has ended."""
        while version.leases:
            await self.change()
        slot.versions.remove(version)
        await self.loader.free(version)
        log.info("unloaded %s from %s", slot.name, version.config.source)
        self.pulse()

    # ── waiting for a change of anything: a lease ended, a task is done ──

    def pulse(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, seconds: float | None = None) -> None:
        """Wait for a change, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def all_slots(self) -> list[Slot]:
        """Those of known models, and of removed ones that still hold memory."""
        return [*self.slots.values(), *self.leaving]

    def held(self, loading: Slot | None = None) -> list[eviction.Held]:
        """All versions; while a slot is `loading` another version, the one that serves there stays."""
        return [held for slot in self.all_slots() for held in slot.held(stays=slot is loading)]
