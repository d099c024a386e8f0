"""One device thread: takes the next batch, runs it, and delivers results to the event loop.

A GPU has one, because two forward passes at once on it only slow each other down. A CPU may have several, each with a
team of math threads of its own (`engine.device.device_threads`). All take their batches from one queue and use the same
weights.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from sie_server.engine.device import device_lost, thread_spoiled, usable_cores, use_cpu_threads
from sie_server.engine.job import Job
from sie_server.errors import QueueFull, SIEError
from sie_server.panics import first_line
from sie_server.room import room_for_threads
from sie_server.serving.device.health import TEST_EVERY_S, DeviceHealth, failure_of
from sie_server.serving.device.isolation import DeviceLost, ThreadSpoiled, as_answer, run_isolated
from sie_server.serving.device.queue import Batch
from sie_server.serving.device.tickets import PendingTicket, deliver, resolve
from sie_server.serving.device.underway import Underway

log = logging.getLogger("sie_server.worker")
Call = tuple[Callable[[], Any], asyncio.Future[Any]]


class Source(Protocol):
    """The part of a worker that its threads use. Some methods are called while `wake` is held."""

    health: DeviceHealth

    @property
    def wake(self) -> threading.Condition:
        """The lock of the queue and of the calls, for which threads wait."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the threads end; under the lock."""
        ...

    def has_work(self, place: int, *, own: bool) -> bool:
        """Return whether the thread of that place has something to do, or only it (`own`); under the lock."""
        ...

    def next_call(self, place: int, *, own: bool) -> Call | None:
        """Return the next call for the thread of that place, or only for it (`own`); under the lock."""
        ...

    def others_serve(self, place: int) -> bool:
        """Return whether a pass can run in the thread of another place."""
        ...

    def take(self) -> Batch[PendingTicket] | None:
        """Return the next batch; under the lock."""
        ...

    def batch_ended(
        self, batch: Batch[PendingTicket], tokens: int, seconds: float, failures: dict[Job, SIEError]
    ) -> None:
        """Count a batch, and drop the rest of the requests that have failed."""
        ...

    def test(self) -> SIEError | None:
        """Run the failing models on texts of the server; return the error of one that fails again."""
        ...

    def on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the event loop."""
        ...

    def thread_died(self, error: BaseException, failure: QueueFull) -> None:
        """Fail all requests."""
        ...


class DeviceThread:
    """A place of the worker that one thread of the system fills; another one takes over if that one is spoiled."""

    def __init__(self, worker: Source, place: int, cpu_threads: int) -> None:
        self._worker, self._place, self._cpu_threads = worker, place, cpu_threads
        self._underway: deque[Underway] = deque()  # batches that have been launched, the oldest first
        self._running_until = 0.0  # estimated end of the running batches
        self._ended = 0.0  # when the last batch ended
        self.spoiled = False  # this thread can no longer run a pass
        self.apart: deque[Batch[PendingTicket]] = deque()  # of a batch that spoiled its thread
        self.thread = self._start()

    @property
    def running_s(self) -> float:
        """The estimated time until the running batches end. One that takes longer is assumed to take as long again."""
        return abs(self._running_until - time.perf_counter()) if self._underway else 0.0

    @property
    def _rests(self) -> bool:
        """Whether it leaves all work to other threads: passes fail in it so fast that it would take most of them."""
        return self.spoiled and self._worker.others_serve(self._place)

    def _start(self) -> threading.Thread:
        name = f"sie-device-{self._place}" if self._place else "sie-device"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        return thread

    # ── everything below runs on the thread ──

    def _work(self) -> None:
        try:
            use_cpu_threads(self._cpu_threads)
            while self._step():
                if self.spoiled and self._hand_over():
                    return
        except BaseException as error:  # panics of native libraries are no `Exception`
            self._worker.thread_died(error, thread_failed(error))

    def _hand_over(self) -> bool:
        """Continue in a new thread, if there is memory for it."""
        if not room_for_threads(1 + (self._cpu_threads or usable_cores())):  # OpenMP starts the others
            return False
        try:
            self.spoiled = False
            self.thread = self._start()
        except RuntimeError:  # can't start new thread
            self.spoiled = True
            return False
        log.warning(
            "a forward pass spoiled its thread because memory was missing; the device continues in a new one"
        )
        return True

    def _step(self) -> bool:
        """Run the next call and the next batch; neither blocks the other. Return False when closed.

        The thread refers to no model while it waits.
        """
        worker, health = self._worker, self._worker.health
        call = self._next_call()
        if call:
            while self._underway:  # a call may free what they use
                self._end_batch()
            self._run_call(*call)
            del call
            health.step_begins(self._place)
            if self.spoiled:
                return True  # the batch runs in the next thread
        with worker.wake:
            if worker.closed:
                return False
            batch = self.apart.popleft() if self.apart else None if self._rests else worker.take()
        if batch:
            self._run_batch(batch)
        elif self._underway:
            self._end_batch()
        elif health.test_is_due and not self._rests:
            self._test_device()
        return True

    def _next_call(self) -> Call | None:
        """Wait for something to do, and return the next call if there is one."""
        worker, health = self._worker, self._worker.health
        with worker.wake:
            health.step_ends(self._place)
            if self._rests:
                worker.wake.notify_all()  # this thread may have been woken for work that it leaves now
            # Any thread may test the models that fail: one that began to wait before a failure is not woken by it.
            tests = self.spoiled or not health.works
            worker.wake.wait_for(
                lambda: worker.has_work(self._place, own=self._rests) or self.apart or self._underway,
                TEST_EVERY_S if tests else None,
            )
            health.step_begins(self._place)
            return worker.next_call(self._place, own=self._rests)

    def _test_device(self) -> None:
        if error := self._worker.test():
            log.error("the device does not work: %s", error.message)
            self.spoiled = self.spoiled or thread_spoiled(error)
        else:
            log.warning("the device works: the server's own texts are scored")

    def _run_call(self, function: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        value, failure = None, None
        try:
            value = function()
        except Exception as error:
            if device_lost(error):
                lost = DeviceLost(str(error))
                self._worker.on_loop(resolve, done, None, thread_failed(lost))
                raise lost from error
            failure = error
            self.spoiled = self.spoiled or thread_spoiled(error)
        except BaseException as error:
            self._worker.on_loop(resolve, done, None, thread_failed(error))
            raise
        self._worker.on_loop(resolve, done, value, failure)

    def _run_batch(self, batch: Batch[PendingTicket]) -> None:
        """Launch a batch, and end as many earlier ones as may not be under way with it: on a CPU also this one."""
        engine = batch.tickets[0].engine
        underway = Underway(batch, engine)
        self._running_until = max(underway.start, self._running_until if self._underway else 0.0)
        self._running_until += underway.tokens / engine.tokens_per_second
        self._underway.append(underway)
        if engine.overlap:
            underway.launch()
        while len(self._underway) > engine.overlap:
            self._end_batch()

    def _end_batch(self) -> None:
        """Wait for the oldest batch under way, and deliver its results."""
        underway, worker = self._underway[0], self._worker
        batch, engine = underway.batch, underway.engine
        with underway.recorded():
            failures = self._results_of(underway)
        self._underway.popleft()
        if failures is None:
            return
        end = time.perf_counter()
        seconds = end - max(underway.start, self._ended)  # without the time of the batch before it
        self._ended = end
        worker.batch_ended(batch, underway.tokens, seconds, failures)
        worker.on_loop(deliver, batch, failures, underway.start, end, underway.steps)
        error = failure_of(batch.works, failures)
        worker.health.batch_ended(engine, error)
        if worker.health.test_is_due or (error and not worker.health.works):
            self._test_device()

    def _results_of(self, underway: Underway) -> dict[Job, SIEError] | None:
        """Run a batch; None if it spoiled the thread and its parts run in the next one."""
        batch = underway.batch
        try:
            return run_isolated(underway.engine, batch.works, underway.flight)
        except ThreadSpoiled as error:
            again = batch.parts() if not self.spoiled else []
            self.spoiled = True
            if again:
                self.apart.extendleft(reversed(again))
                return None
            log.error("a forward pass failed: %s", error)
            return dict.fromkeys([work.job for work in batch.works], as_answer(error))


def thread_failed(error: BaseException) -> QueueFull:
    """Return the error of all requests after a device thread has failed."""
    name = type(error).__name__
    why = f"{name}: {first_line(error)}" if isinstance(error, DeviceLost) else name
    return QueueFull(f"the device thread has failed ({why}) and the server is stopping", retry_after_s=1)
