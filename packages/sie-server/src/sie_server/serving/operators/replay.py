"""Swaps with replay: both versions score the last requests before the switch, and their difference decides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sie_server.engine.engine import Engine
from sie_server.errors import Conflict, InferenceError, InvalidInput, QueueFull
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.lifecycle.slots import Version
from sie_server.serving.loading.progress import Progress
from sie_server.serving.operators.differences import Differences, Scored
from sie_server.serving.operators.replay_buffer import Recorded, ReplayBuffer
from sie_server.wire import ReplayReport

LONGEST_S = 600.0  # of a replay, which competes with the requests of callers
RETRY_S = 0.5  # after the queue was full
ScoreOn = Callable[[str, Engine, Recorded], Awaitable[Scored]]


class NotSwitched(Exception):
    """Ends a swap before its switch. The report says why."""


class Replays:
    """The buffer, and the function that lets a version score a request of it."""

    def __init__(self, buffer: ReplayBuffer, registry: Registry, score_on: ScoreOn) -> None:
        self.buffer, self._registry, self._score_on = buffer, registry, score_on

    def comparison(self, model: str, count: int, max_difference: float | None) -> Comparison:
        """Return the comparison of the serving version with the one that would replace it.

        Raises:
            ModelNotFound
            Conflict: there is nothing to compare: no buffer, no requests, or no serving version.
        """
        slot = self._registry.model_slot(model)
        if not self.buffer.count:
            raise Conflict(
                "this server keeps no requests to replay; start it with replay_buffer above 0, or omit replay"
            )
        if slot.serving is None:
            raise Conflict(
                f"model {slot.name!r} is not loaded, so there is no version to compare with; load it first, or omit "
                "replay"
            )
        recorded = self.buffer.last(slot.name, count)
        if not recorded:
            raise Conflict(
                f"no requests of model {slot.name!r} have been kept since the start; wait for some, or omit replay"
            )
        return Comparison(slot.name, recorded, max_difference, self._registry, self._score_on)


@dataclass
class Comparison:
    """One replay. `report` has its result."""

    model: str
    recorded: list[Recorded]
    max_difference: float | None
    registry: Registry
    score_on: ScoreOn
    report: ReplayReport | None = None
    _found: Differences = field(default_factory=Differences)
    _old_failed: int = 0

    async def hold(self, version: Version, progress: Progress) -> None:
        """Score the requests with the serving and the new version.

        Raises:
            NotSwitched: the versions differ too much, or the caller wants only the report.
        """
        progress.enter("replay")
        async with self.registry.lease_version(self.model) as old:
            await self._compare_all(old, version, progress)
        switched = self._decide()
        self.report = self._found.report(self.max_difference, switched=switched)
        if not switched:
            raise NotSwitched

    async def _compare_all(self, old: Version, new: Version, progress: Progress) -> None:
        found, end = self._found, time.monotonic() + LONGEST_S
        if old.engine is None or new.engine is None:
            raise RuntimeError(f"a version of {self.model!r} has no engine")
        adapters = sum(one.options.adapter is not None for one in self.recorded)
        if adapters:
            found.notes.append(
                f"{adapters} requests name an adapter, which is loaded after the switch; left out"
            )
        if old.engine.documents and old.engine.matches_tokens:
            found.notes.append("documents that the old version has cached make its time shorter")
        chosen = [one for one in self.recorded if one.options.adapter is None]
        for number, one in enumerate(chosen):
            if time.monotonic() > end:
                found.notes.append(f"{len(chosen) - number} requests are left out after {LONGEST_S:.0f} s")
                break
            await self._compare(old.engine, new.engine, one, new_first=number % 2 == 1)
            progress.touch()
        if self._old_failed:
            found.notes.append(
                f"{self._old_failed} requests are left out: the old version no longer answers them"
            )

    async def _compare(self, old: Engine, new: Engine, one: Recorded, *, new_first: bool) -> None:
        found: dict[Engine, Scored] = {}
        # alternating, so that neither version always finds warm caches
        for engine in (new, old) if new_first else (old, new):
            try:
                found[engine] = await self._scored(engine, one)
            except (InvalidInput, InferenceError) as error:
                if engine is new:
                    self._found.refuse(error.message)
                else:
                    self._old_failed += 1
                return
        self._found.add(found[old], found[new])

    async def _scored(self, engine: Engine, one: Recorded) -> Scored:
        """Score a request after those of callers: a full queue is waited for."""
        end = time.monotonic() + LONGEST_S / 10
        while True:
            try:
                return await self.score_on(self.model, engine, one)
            except QueueFull:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(RETRY_S)

    def _decide(self) -> bool:
        difference, notes = self._found.difference, self._found.notes
        if self.max_difference is None:
            notes.append(
                "report only; repeat with max_difference to let it decide, or without replay to switch"
            )
            return False
        if difference is None:
            notes.append("not switched: no request with two documents could be compared")
            return False
        if difference > self.max_difference:
            notes.append(f"not switched: the difference {difference:.4f} is above {self.max_difference:g}")
            return False
        return True
