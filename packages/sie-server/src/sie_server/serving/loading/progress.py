"""How far a load has come, how long the rest will take, and giving up a load that makes no progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed, SIEError
from sie_server.wire import LoadProgress

Result = TypeVar("Result")

Phase = Literal["fetch", "room", "load", "measure", "probe", "replay"]
FIRST_ESTIMATE_S = 5.0  # before any rate is known
LONGEST_GAP_S = 5.0  # between two looks at a load, while the process runs


@dataclass(eq=False)
class Progress:
    """A load in progress. The fetching thread updates `tally` first, then the thread that reads the weights."""

    started: float = field(default_factory=time.monotonic)
    phase: Phase = "fetch"
    phase_started: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)
    reason: SIEError | None = None  # why the load was given up
    _task: asyncio.Task[Any] | None = None  # the load
    _queued: int = 0  # steps of the load that wait for a thread
    _seen: tuple[int, int] = (0, 0)  # the tally and its bytes, checked ones included, at `_moved`
    _moved: float = field(default_factory=time.monotonic)  # when progress was last seen

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Start a phase; `total` is the number of bytes it has to process."""
        self.phase, self.phase_started = phase, time.monotonic()
        self.touch()
        if total is not None:
            self.tally = Tally(total=total)

    def remaining_s(self, bytes_per_second: float | None, now: float) -> float:
        """Estimate the seconds left.

        The estimate uses the rate of this load, else the rate of earlier loads, else the time the load has taken so
        far.
        """
        elapsed, total = now - self.phase_started, self.tally.total
        done = self.tally.nbytes - self.tally.before
        if self.phase in ("fetch", "load") and total and done > 0:
            return elapsed * max(0, total - self.tally.nbytes) / done
        if self.phase == "load" and total and bytes_per_second:
            return max(0.0, total / bytes_per_second - elapsed)
        return max(now - self.started, FIRST_ESTIMATE_S)

    def wire(self) -> LoadProgress:
        """The progress as `GET /v1/models` shows it."""
        seconds = round(time.monotonic() - self.started, 1)
        return LoadProgress(self.phase, seconds, self.tally.nbytes, self.tally.total)

    # ── loads that make no progress ──

    def touch(self) -> None:
        """Note that the load makes progress other than bytes."""
        self._moved = time.monotonic()

    @contextmanager
    def queued(self) -> Iterator[None]:
        """While the block runs, the load waits for a thread, which is no lack of progress."""
        self._queued += 1
        try:
            yield
        finally:
            self._queued -= 1
            self.touch()

    def idle_s(self) -> float:
        """Return the seconds without progress: the same phase and the same number of bytes."""
        now, seen = time.monotonic(), (id(self.tally), self.tally.nbytes + self.tally.checked)
        if self._queued or seen != self._seen:
            self._seen, self._moved = seen, now
        return now - self._moved

    def give_up(self, reason: SIEError) -> None:
        """End the load with this error. A thread that still works for it ends at its next tensor, if it gets there."""
        self.reason, self.tally.stopped = reason, True
        if self._task:
            self._task.cancel()

    async def watch(self, load: Coroutine[Any, Any, Result], what: str, stall_s: float) -> Result:
        """Return the result of a load, which is given up after `stall_s` seconds without progress.

        Raises:
            ModelLoadFailed: the load was given up. Any error of the load or of `give_up`.
        """
        self._task = task = asyncio.create_task(load)
        try:
            while not task.done():
                looked = time.monotonic()
                await asyncio.wait([task], timeout=min(1.0, stall_s / 4))
                if time.monotonic() - looked > LONGEST_GAP_S:
                    self.touch()  # the process was paused, for example with its container
                # the wait for memory has a limit of its own
                if not task.done() and self.phase != "room" and self.idle_s() >= stall_s:
                    self.give_up(self._stalled(what, stall_s))
        finally:
            self._task = None
            task.cancel()
        if task.cancelled() and self.reason:
            raise self.reason
        return task.result()

    def _stalled(self, what: str, stall_s: float) -> ModelLoadFailed:
        done, total = self.tally.nbytes / 2**20, self.tally.total
        size = f"{done:,.1f} MiB" if total is None else f"{done:,.1f} of {total / 2**20:,.1f} MiB"
        return ModelLoadFailed(
            f"{what} made no progress for {stall_s:g} s (load_stall_s) in the phase {self.phase!r} after {size}, "
            "so its load was given up; check that its files can be read",
            error_class="LoadStalled",
            permanent=False,
            attempts=1,
        )
