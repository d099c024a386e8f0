"""The health of the device threads: their heartbeats, and whether each model's forward passes succeed.

The device threads write, under a lock, and the event loop reads single values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.errors import SIEError

MOST_FAILURES = 3  # of one model in a row, before a self-test decides
TEST_EVERY_S = 1.0  # while a model does not work
LONGEST_GAP_S = 5.0  # between two looks of the watch at the clock, while the process runs
ALSO = "; a text of the server fails, too"

SelfTest = Callable[[Engine], None]


class AwakeClock:
    """Seconds for which this process could run. While it is paused (SIGSTOP, a frozen container) none pass.

    A watch has to call `tick` every second: a longer gap than `LONGEST_GAP_S` is a pause.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = (
            clock(),
            0.0,
        )  # when `tick` was called, and the pauses before; one value, read by threads

    def __call__(self) -> float:
        """Return the seconds since an arbitrary start; they stand still if `tick` is not called."""
        seen, paused = self._looked
        return min(self._clock(), seen + LONGEST_GAP_S) - paused

    def tick(self) -> None:
        """Note that the process runs."""
        seen, paused = self._looked
        now = self._clock()
        self._looked = now, paused + max(0.0, now - seen - LONGEST_GAP_S)


class DeviceHealth:
    """The state of the device threads. Models that are unloaded are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.awake = AwakeClock(clock)  # `DeviceWorker.watch` ticks it
        self._began: dict[int, float] = {}  # place of a thread → when its step began; without those that wait
        self._lock = threading.RLock()  # of everything below
        self.dead = False  # a thread has ended by an exception
        self._failures: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()  # in a row
        self._suspects: WeakSet[Engine] = WeakSet()
        self._tested = -TEST_EVERY_S

    def step_begins(self, place: int = 0) -> None:
        """Note that the thread of that place starts a forward pass or a call."""
        self._began[place] = self.awake()

    def step_ends(self, place: int = 0) -> None:
        """Note that the thread is back from it."""
        self._began.pop(place, None)

    @property
    def step_s(self) -> float:
        """Seconds since the oldest current step began, without pauses of the process; 0 while all threads wait."""
        return max((self.awake() - began for began in list(self._began.values())), default=0.0)

    @property
    def works(self) -> bool:
        """False after repeated failures of a model, until one of its forward passes succeeds."""
        return not self._suspects

    @property
    def trouble(self) -> str | None:
        """Why a model does not work."""
        with self._lock:
            return next((engine.trouble for engine in list(self._suspects)), None)

    def batch_ended(self, engine: Engine, error: SIEError | None) -> None:
        """Note a batch of a model. It has failed, with `error`, if every request in it has failed."""
        with self._lock:
            if error is None:
                self._recovered(engine)
                return
            count = self._failures[engine] = self._failures.get(engine, 0) + 1
            if count >= MOST_FAILURES:
                self._suspects.add(engine)
                engine.trouble = f"{count} forward passes in a row have failed: {error.message}"

    def _recovered(self, engine: Engine) -> None:
        self._failures.pop(engine, None)
        self._suspects.discard(engine)
        engine.trouble = None

    @property
    def test_is_due(self) -> bool:
        """Whether a model does not work and has not been tested in the last second."""
        return not self.works and self._clock() - self._tested >= TEST_EVERY_S

    def test(self, self_test: SelfTest) -> SIEError | None:
        """Run the failing models on texts of the server, because the callers' texts may have caused the failures.

        Returns the error of one that fails again.
        """
        found = None
        with self._lock:
            suspects = list(self._suspects)
            self._tested = self._clock()  # no other thread tests at the same time
        for engine in suspects:
            try:
                self_test(engine)
            except SIEError as error:
                found = error
                with self._lock:
                    engine.trouble = (
                        f"{(engine.trouble or '').removesuffix(ALSO)}{ALSO}"  # the log has the error
                    )
            else:
                with self._lock:
                    self._recovered(engine)
        self._tested = self._clock()
        return found


def failure_of(works: list[Any], failures: dict[Job, SIEError]) -> SIEError | None:
    """Return an error of a batch if every job in it has failed."""
    return failures[works[0].job] if all(work.job in failures for work in works) else None
