"""The device thread: takes the next batch, runs it, and delivers results to the event loop. Owns the queue.

There is one thread per device, because two forward passes at once on the same cores or GPU only slow each other down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sie_server.engine.device import device_lost, thread_spoiled, usable_cores, use_cpu_threads
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, Work
from sie_server.errors import QueueFull, SIEError
from sie_server.panics import first_line
from sie_server.room import room_for_threads
from sie_server.serving.backend import OnDeath
from sie_server.serving.device.health import TEST_EVERY_S, DeviceHealth, SelfTest, failure_of
from sie_server.serving.device.isolation import DeviceLost, ThreadSpoiled, as_answer, run_isolated
from sie_server.serving.device.queue import Batch, Demand, Place, TokenQueue
from sie_server.serving.device.tickets import PendingTicket, TicketClosed, deliver, resolve
from sie_server.serving.device.underway import Underway
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.wire import Priority

log = logging.getLogger("sie_server.worker")
Result = TypeVar("Result")
JOIN_S = 2.0  # a batch that still runs when the server stops has no caller


class DeviceWorker:
    """Runs jobs through models, in batches across requests."""

    def __init__(
        self,
        max_queue_tokens: int,
        cpu_threads: int,
        metrics: Metrics,
        on_death: OnDeath | None = None,
        self_test: SelfTest = lambda engine: None,
    ) -> None:
        """`on_death` is called once, on the event loop, if the device thread ends by an exception.

        `self_test` runs a model on texts of the server, and raises an SIEError if the model fails.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: TokenQueue[PendingTicket] = TokenQueue(max_queue_tokens)
        self._pending: set[PendingTicket] = set()  # in the queue or on the device
        self._calls: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._failure: QueueFull | None = None  # of the thread itself
        self._metrics, self._on_death, self._self_test = metrics, on_death, self_test
        self.health = DeviceHealth()
        self._running_until, self._is_running = 0.0, False  # estimated end of the running batches
        self._underway: deque[Underway] = deque()  # batches that have been launched, the oldest first
        self._ended = 0.0  # when the last batch ended
        self.busy_s = 0.0  # time of all batches
        self._cpu_threads = cpu_threads
        self._spoiled = False  # this thread can no longer run a pass
        self._apart: deque[Batch[PendingTicket]] = deque()  # of a batch that spoiled its thread
        self._thread = self._start_thread()

    @property
    def typical_tokens(self) -> int:
        """Tokens of a typical job."""
        return int(self._queue.typical_tokens)

    def seconds_until_done(self, demand: Demand) -> float:
        """Estimate the time until a job that arrives now is finished."""
        with self._wake:
            return self._running_seconds() + self._queue.seconds_until_done(demand)

    def queued_seconds(self) -> float:
        """Estimate the device time of all admitted work: running, queued, and being tokenised."""
        with self._wake:
            return self._running_seconds() + self._queue.seconds_waiting()

    def _running_seconds(self) -> float:
        # a batch that takes longer than estimated is assumed to take as long again
        return abs(self._running_until - time.perf_counter()) if self._is_running else 0.0

    def seconds_until_fit(self, demand: Demand) -> float:
        """Estimate the time until the queue has room for a job; 0: it has room now."""
        with self._wake:
            return self._queue.seconds_of(self._queue.excess(demand.tokens))

    def expect(self, demand: Demand) -> Place:
        """Count an admitted request in the estimates, until `forget`."""
        with self._wake:
            return self._queue.expect(demand)

    def forget(self, place: Place) -> None:
        """End `expect`."""
        with self._wake:
            self._queue.forget(place)

    async def run(
        self, engine: Engine, jobs: Sequence[Job], timing: RequestTiming, priority: Priority | None = None
    ) -> None:
        """Wait until the jobs of one request have all their results. Cancelling the wait drops the rest of the work.

        Raises:
            QueueFull, InferenceError, ResourceExhausted
        """
        ticket = PendingTicket(engine, jobs, timing, priority)
        with self.waiting_for(ticket):
            self.hand_over(ticket, (), whole=True)
            await self.results(ticket)

    def hand_over(self, ticket: PendingTicket, works: Sequence[Work], *, whole: bool) -> None:
        """Add works to a growing request; the first ones put it into the queue. `whole`: no more follow. Any thread.

        Raises:
            QueueFull: they do not fit, or the server stops.
            TicketClosed: the request has failed, or its caller has gone.
        """
        with self._wake:
            if self._closed:
                raise self._failure or _stopping()
            if ticket.closed:
                raise TicketClosed
            if ticket not in self._pending:
                ticket.submitted = time.perf_counter()
            self._queue.grow(ticket, works, whole=whole)
            self._pending.add(ticket)
            self._metrics.queue_tokens.set(self._queue.tokens_waiting)
            self._wake.notify()

    async def results(self, ticket: PendingTicket) -> None:
        """Wait until a request that is whole has all its results.

        Raises:
            QueueFull, InferenceError, ResourceExhausted
        """
        if ticket.done.done() or not ticket.complete:
            await ticket.done

    @contextmanager
    def waiting_for(self, ticket: PendingTicket) -> Iterator[None]:
        """Drop the rest of a request's work if the block fails or is cancelled."""
        try:
            yield
        except BaseException:
            with self._wake:
                self._drop(ticket)
            raise
        finally:
            with self._wake:
                self._pending.discard(ticket)
            ticket.settle()
            for job in ticket.jobs:
                job.release()

    def _drop(self, ticket: PendingTicket) -> None:
        self._queue.drop(ticket)
        self._metrics.queue_tokens.set(self._queue.tokens_waiting)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the device thread, between two batches.

        Raises:
            QueueFull: the server is shutting down. Any exception of `function`.
        """
        done: asyncio.Future[Result] = self._loop.create_future()
        with self._wake:
            if self._closed:
                raise self._failure or _stopping()
            self._calls.append((function, done))
            self._wake.notify()
        return await done

    async def score_known(self, engine: Engine, job: Job, timing: RequestTiming) -> None:
        """Score the documents of `job` that need no forward pass. The arithmetic runs on the device thread as well.

        Raises:
            QueueFull, InferenceError, ResourceExhausted
        """
        started = time.perf_counter()
        try:
            await self.call(lambda: engine.score_known(job))
        except QueueFull:
            raise
        except Exception as error:
            log.exception("scoring known vectors failed")
            raise as_answer(error) from error
        timing.inference_ms += (time.perf_counter() - started) * 1e3
        timing.step("read_out", started)

    def _start_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="sie-device", daemon=True)
        thread.start()
        return thread

    async def watch(self, stall_s: float) -> None:
        """Give the thread up if one step takes longer than `stall_s`; runs until cancelled.

        A thread cannot be ended, so the process has to end.
        """
        while not self._closed:
            await asyncio.sleep(min(1.0, stall_s / 4))
            if self.health.step_s > stall_s and not self._closed:
                self._give_up(_thread_stuck(self.health.step_s))

    def close(self) -> None:
        """End the thread after its running batch, for which this waits only briefly. Requests that still wait fail."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(JOIN_S)
        self._fail_all(_stopping())

    def _give_up(self, failure: QueueFull) -> None:
        """Fail all requests, now and later, and report the failure."""
        self.health.dead = True
        with self._wake:
            self._closed, self._failure = True, failure
        with suppress(RuntimeError):  # the event loop is closed
            self._fail_all(failure)
            if self._on_death:
                self._loop.call_soon_threadsafe(self._on_death, failure)

    def _fail_all(self, error: SIEError) -> None:
        """Fail every call and every job that has no result yet."""
        with self._wake:
            waiting = [done for _, done in self._calls] + [ticket.done for ticket in self._pending]
            self._calls = []
            self._apart.clear()
            self._queue.clear()
        for done in waiting:
            self._loop.call_soon_threadsafe(resolve, done, None, error)

    # ── everything below runs on the device thread ──

    def _work(self) -> None:
        try:
            use_cpu_threads(self._cpu_threads)
            while self._step():
                if self._spoiled and self._hand_over():
                    return
        except BaseException as error:  # panics of native libraries are no `Exception`
            self._die(error)

    def _hand_over(self) -> bool:
        """Continue in a new thread, if there is memory for it."""
        if not room_for_threads(1 + (self._cpu_threads or usable_cores())):  # OpenMP starts the others
            return False
        try:
            self._spoiled = False
            self._thread = self._start_thread()
        except RuntimeError:  # can't start new thread
            self._spoiled = True
            return False
        log.warning(
            "a forward pass spoiled its thread because memory was missing; the device continues in a new one"
        )
        return True

    def _die(self, error: BaseException) -> None:
        """Fail all requests: without this thread they would wait indefinitely."""
        if (
            self._closed and self._loop.is_closed()
        ):  # a batch ended after the program: its result has no reader
            return
        log.critical("the device thread has failed", exc_info=error)
        self._give_up(_thread_failed(error))

    def _step(self) -> bool:
        """Run the next call and the next batch; neither blocks the other. Return False when closed.

        The thread refers to no model while it waits.
        """
        with self._wake:
            self.health.step_ends()
            pause = None if self.health.works and not self._spoiled else TEST_EVERY_S
            self._wake.wait_for(
                lambda: self._closed or self._calls or self._apart or self._queue or self._underway, pause
            )
            self.health.step_begins()
            call = self._calls.pop(0) if self._calls and not self._closed else None
        if call:
            while self._underway:  # a call may free what they use
                self._end_batch()
            self._run_call(*call)
            del call
            self.health.step_begins()
            if self._spoiled:
                return True  # the batch runs in the next thread
        with self._wake:
            if self._closed:
                return False
            batch = self._apart.popleft() if self._apart else self._queue.take()
            self._metrics.queue_tokens.set(self._queue.tokens_waiting)
        if batch:
            self._run_batch(batch)
        elif self._underway:
            self._end_batch()
        elif not self.health.works:
            self._test_device()
        return True

    def _test_device(self) -> None:
        if error := self.health.test(self._self_test):
            log.error("the device does not work: %s", error.message)
            self._spoiled = self._spoiled or thread_spoiled(error)
        else:
            log.warning("the device works: the server's own texts are scored")

    def _run_call(self, function: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        value, failure = None, None
        try:
            value = function()
        except Exception as error:
            if device_lost(error):
                lost = DeviceLost(str(error))
                self._loop.call_soon_threadsafe(resolve, done, None, _thread_failed(lost))
                raise lost from error
            failure = error
            self._spoiled = self._spoiled or thread_spoiled(error)
        except BaseException as error:
            self._loop.call_soon_threadsafe(resolve, done, None, _thread_failed(error))
            raise
        self._loop.call_soon_threadsafe(resolve, done, value, failure)

    def _run_batch(self, batch: Batch[PendingTicket]) -> None:
        """Launch a batch, and end as many earlier ones as may not be under way with it: on a CPU also this one."""
        engine = batch.tickets[0].engine
        underway = Underway(batch, engine)
        self._running_until = max(underway.start, self._running_until if self._underway else 0.0)
        self._running_until += underway.tokens / engine.tokens_per_second
        self._is_running = True
        self._underway.append(underway)
        if engine.overlap:
            underway.launch()
        while len(self._underway) > engine.overlap:
            self._end_batch()

    def _end_batch(self) -> None:
        """Wait for the oldest batch under way, and deliver its results."""
        underway = self._underway.popleft()
        batch, engine, tokens = underway.batch, underway.engine, underway.tokens
        with underway.recorded():
            failures = self._results_of(underway)
        self._is_running = bool(self._underway)
        if failures is None:
            return
        end = time.perf_counter()
        seconds = end - max(underway.start, self._ended)  # without the time of the batch before it
        self._ended = end
        self.busy_s += seconds
        self._metrics.batch(tokens, engine.batch_tokens, seconds)
        if len(batch.works) > 1:  # a small batch says little about the rate of a full queue
            engine.tokens_per_second += 0.2 * (tokens / seconds - engine.tokens_per_second)
        with self._wake:
            for ticket in batch.tickets:
                if ticket.failure(failures):
                    self._drop(ticket)
        self._loop.call_soon_threadsafe(deliver, batch, failures, underway.start, end, underway.steps)
        error = failure_of(batch.works, failures)
        self.health.batch_ended(engine, error)
        if self.health.test_is_due or (error and not self.health.works):
            self._test_device()

    def _results_of(self, underway: Underway) -> dict[Job, SIEError] | None:
        """Run a batch; None if it spoiled the thread and its parts run in the next one."""
        batch = underway.batch
        try:
            return run_isolated(underway.engine, batch.works, underway.flight)
        except ThreadSpoiled as error:
            again = batch.parts() if not self._spoiled else []
            self._spoiled = True
            if again:
                self._apart.extendleft(reversed(again))
                return None
            log.error("a forward pass failed: %s", error)
            return dict.fromkeys([work.job for work in batch.works], as_answer(error))


def _thread_failed(error: BaseException) -> QueueFull:
    name = type(error).__name__
    why = f"{name}: {first_line(error)}" if isinstance(error, DeviceLost) else name
    return QueueFull(f"the device thread has failed ({why}) and the server is stopping", retry_after_s=1)


def _thread_stuck(seconds: float) -> QueueFull:
    log.critical("the device thread has been in one step for %.0f s (device_stall_s)", seconds)
    return QueueFull(
        f"the device thread is stuck: one step has taken {seconds:.0f} s, longer than device_stall_s; "
        "the server is stopping",
        retry_after_s=1,
    )


def _stopping() -> QueueFull:
    return QueueFull("the server is shutting down", retry_after_s=1)
