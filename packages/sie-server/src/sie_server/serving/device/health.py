"""The health of the device thread: its heartbeat, and whether forward passes succeed.

The device thread writes, and the health routes read. Single attributes are read and written, so no lock is needed.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.errors import SIEError

MOST_FAILURES = 3  # consecutive ones, before a self-test decides
TEST_EVERY_S = 1.0  # while the device does not work

SelfTest = Callable[[Engine], None]


class DeviceHealth:
    """The state of the device thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step_began: float | None = None  # None: the thread waits for work
        self._failures = 0
        self.dead = False  # the thread has ended by an exception
        self._suspect: weakref.ref[Engine] | None = None  # the model whose passes fail; it may be unloaded

    def step_begins(self) -> None:
        """Note that the thread starts a forward pass or a call."""
        self._step_began = self._clock()

    def step_ends(self) -> None:
        """Note that the thread is back from it."""
        self._step_began = None

    @property
    def step_s(self) -> float:
        """Seconds since the current step began; 0 while the thread waits."""
        began = self._step_began
        return 0.0 if began is None else self._clock() - began

    @property
    def works(self) -> bool:
        """False after repeated failures, until a forward pass succeeds."""
        return self._failures < MOST_FAILURES

    def batch_ended(self, engine: Engine, *, failed: bool) -> None:
        """Note a batch. It has failed if every request in it has failed."""
        self._failures = self._failures + 1 if failed else 0
        self._suspect = None if self.works else weakref.ref(engine)

    def test(self, self_test: SelfTest) -> SIEError | None:
        """Run the failing model on texts of the server, because the callers' texts may have caused the failures."""
        engine = None if self._suspect is None else self._suspect()
        if engine is not None:
            try:
                self_test(engine)
            except SIEError as error:
                return error
        self._failures, self._suspect = 0, None
        return None


def all_failed(works: list[Any], failures: dict[Job, SIEError]) -> bool:
    """Return whether every job of a batch has failed."""
    return all(work.job in failures for work in works)
