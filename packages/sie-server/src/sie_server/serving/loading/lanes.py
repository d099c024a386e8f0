"""Threads for the steps of loads that block: downloads, reading files, loading weights.

A lane runs a limited number of steps at once. A thread that blocks permanently, for example on a network file system,
cannot be ended. So a step without progress gives its place to the next one, and a step that was given up is left to its
thread: its result is freed when it comes. The threads are daemons, so none of them holds up the end of the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from sie_server.engine.device import thread_spoiled
from sie_server.engine.storage.footprint import freeing
from sie_server.panics import NativePanic
from sie_server.room import start_thread
from sie_server.serving.loading.progress import Progress

Result = TypeVar("Result")
PATIENCE_S = 10.0  # a step without progress for this long no longer keeps others from running


class Step:
    """A function that runs on a thread, and the future of its result on the event loop."""

    def __init__(self, work: Callable[[], Any], source: str) -> None:
        self.source = source
        self._work: Callable[[], Any] | None = work
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        self.given_up = False  # no caller waits for the result
        self.let_go = False  # another thread has taken the place of this one in the lane
        self.ended = False
        self.spoiled = False  # its thread can run no later step
        self._value: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        """Run the function; on the lane's thread."""
        assert self._work is not None
        try:
            self._value = self._work()
        except Exception as error:
            self._error = error
            self.spoiled = thread_spoiled(error)
        except BaseException as error:  # it must not end the event loop, where it would be raised
            self._error = NativePanic(f"a native library panicked: {error or type(error).__name__}")
        self._work = None
        if self.given_up:
            with freeing():
                self._value = self._error = None

    def deliver(self) -> None:
        """Hand over the result; on the lane's thread."""
        value, error, self._value, self._error = self._value, self._error, None, None
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(_settle, self.outcome, value, error)


def _settle(outcome: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if outcome.done():
        return
    if error:
        outcome.set_exception(error)
    else:
        outcome.set_result(value)


class Lane:
    """At most `count` steps at once, each on a thread of its own. Used on the event loop."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._permits = name, asyncio.Semaphore(count)
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a step
        self._closed = False
        self._left: list[Step] = []  # given up, and still running when last looked at

    @property
    def idle(self) -> bool:
        """Whether a step would start at once."""
        return not self._permits.locked()

    async def run(
        self, work: Callable[[], Result], source: str = "", progress: Progress | None = None
    ) -> Result:
        """Run `work` on a thread. `source` names what it reads. Cancelling the wait gives the step up."""
        with (progress or Progress()).queued():
            await self._permits.acquire()
        step = Step(work, source)
        try:
            self._start(step)
            while not step.outcome.done():
                await asyncio.wait([step.outcome], timeout=None if step.let_go else PATIENCE_S)
                if not step.outcome.done() and (progress is None or progress.idle_s() >= PATIENCE_S):
                    self._let_go(step)
            result: Result = step.outcome.result()
            return result
        finally:
            if not step.outcome.done():
                step.given_up = True
                step.outcome.cancel()
                self._left.append(step)
            self._let_go(step)

    def left_running(self, source: str) -> bool:
        """Return whether a step that was given up still reads `source`."""
        self._left = [step for step in self._left if not step.ended]
        return any(step.source == source for step in self._left)

    def close(self) -> None:
        """End the idle threads, and the others after their step."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._steps.put(None)
            self._idle = 0  # a step that comes later gets a new thread

    def _let_go(self, step: Step) -> None:
        """Let the next step start, if `step` has not done so before. Its thread ends after it if it still runs."""
        with self._lock:
            if step.let_go:
                return
            step.let_go = True
        self._permits.release()

    def _start(self, step: Step) -> None:
        with self._lock:
            has_thread = self._idle > 0
            self._idle -= has_thread
        if not has_thread:
            start_thread(threading.Thread(target=self._serve, name=self._name, daemon=True))
        self._steps.put(step)  # last: without a thread, a later one would take it instead of its own

    def _serve(self) -> None:
        stays = True
        while stays and (step := self._steps.get()) is not None:
            step.run()
            with self._lock:  # before the result is delivered, so that the next step finds this thread
                stays = not (step.let_go or step.spoiled or self._closed)
                self._idle += stays
                step.ended = True
            step.deliver()
            del step  # an idle thread refers to no engine
