"""The queue of a device, and the threads that run its batches (`thread`)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, Work
from sie_server.errors import QueueFull, SIEError
from sie_server.serving.backend import OnDeath
from sie_server.serving.device.health import DeviceHealth, SelfTest
from sie_server.serving.device.isolation import as_answer
from sie_server.serving.device.queue import Batch, Demand, Place, TokenQueue
from sie_server.serving.device.thread import Call, DeviceThread
from sie_server.serving.device.tickets import PendingTicket, TicketClosed, resolve
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.wire import Priority

log = logging.getLogger("sie_server.worker")
Result = TypeVar("Result")
JOIN_S = 2.0  # a batch that still runs when the server stops has no caller


@dataclass(eq=False)
class _Call:
    """A function for a device thread."""

    function: Callable[[], Any]
    done: asyncio.Future[Any]
    place: int | None = None  # of the thread that runs it; None: any


class DeviceWorker:
    """Runs jobs through models, in batches across requests."""

    def __init__(
        self,
        max_queue_tokens: int,
        cpu_threads: int,
        metrics: Metrics,
        on_death: OnDeath | None = None,
        self_test: SelfTest = lambda engine: None,
        device_threads: int = 1,
    ) -> None:
        """Start `device_threads` threads, each with `cpu_threads` math threads (0: one per usable core).

        `on_death` is called once, on the event loop, if a device thread ends by an exception.
        `self_test` runs a model on texts of the server, and raises an SIEError if the model fails.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: TokenQueue[PendingTicket] = TokenQueue(max_queue_tokens, device_threads)
        self._pending: set[PendingTicket] = set()  # in the queue or on the device
        self._calls: list[_Call] = []
        self.wake = threading.Condition()  # of the queue and the calls; device threads wait for it
        self._closed = False
        self._failure: QueueFull | None = None  # of the thread itself
        self._metrics, self._on_death, self._self_test = metrics, on_death, self_test
        self.health = DeviceHealth()
        self._busy_s = 0.0  # time of all batches
        self._threads: list[DeviceThread] = []
        for place in range(device_threads):
            self._threads.append(DeviceThread(self, place, cpu_threads))

    @property
    def busy_s(self) -> float:
        """Time for which the device has run batches; with several threads, their mean."""
        return self._busy_s / len(self._threads)

    @property
    def typical_tokens(self) -> int:
        """Tokens of a typical job."""
        return int(self._queue.typical_tokens)

    def seconds_until_done(self, demand: Demand) -> float:
        """Estimate the time until a job that arrives now is finished."""
        with self.wake:
            return self._running_seconds() + self._queue.seconds_until_done(demand)

    def queued_seconds(self) -> float:
        """Estimate the device time of all admitted work: running, queued, and being tokenised."""
        with self.wake:
            return self._running_seconds() + self._queue.seconds_waiting()

    def _running_seconds(self) -> float:
        return sum(thread.running_s for thread in self._threads) / max(1, len(self._threads))

    def seconds_until_fit(self, demand: Demand) -> float:
        """Estimate the time until the queue has room for a job; 0: it has room now."""
        with self.wake:
            return self._queue.seconds_of(self._queue.excess(demand.tokens))

    def expect(self, demand: Demand) -> Place:
        """Count an admitted request in the estimates, until `forget`."""
        with self.wake:
            return self._queue.expect(demand)

    def forget(self, place: Place) -> None:
        """End `expect`."""
        with self.wake:
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
        with self.wake:
            if self._closed:
                raise self._failure or _stopping()
            if ticket.closed:
                raise TicketClosed
            if ticket not in self._pending:
                ticket.submitted = time.perf_counter()
            self._queue.grow(ticket, works, whole=whole)
            self._pending.add(ticket)
            self._metrics.queue_tokens.set(self._queue.tokens_waiting)
            self._wake_thread()

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
            with self.wake:
                self._drop(ticket)
            raise
        finally:
            with self.wake:
                self._pending.discard(ticket)
            ticket.settle()
            for job in ticket.jobs:
                job.release()

    def _drop(self, ticket: PendingTicket) -> None:
        self._queue.drop(ticket)
        self._metrics.queue_tokens.set(self._queue.tokens_waiting)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on a device thread, between two of its batches. Other threads go on.

        Raises:
            QueueFull: the server is shutting down. Any exception of `function`.
        """
        return await self._called(function, None)

    async def settled(self) -> None:
        """Wait until every batch that runs now has ended.

        Raises:
            QueueFull: the server is shutting down.
        """
        await asyncio.gather(*(self._called(lambda: None, place) for place in range(len(self._threads))))

    def _called(self, function: Callable[[], Result], place: int | None) -> asyncio.Future[Result]:
        done: asyncio.Future[Result] = self._loop.create_future()
        with self.wake:
            if self._closed:
                raise self._failure or _stopping()
            self._calls.append(_Call(function, done, place))
            if place is None:
                self._wake_thread()
            else:
                self.wake.notify_all()
        return done

    def _wake_thread(self) -> None:
        """Wake a thread that takes work. Under the lock."""
        if any(thread.spoiled for thread in self._threads):
            self.wake.notify_all()  # a single one might be a thread that leaves work to the others
        else:
            self.wake.notify()

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

    async def watch(self, stall_s: float) -> None:
        """Give the threads up if a step of one takes longer than `stall_s`; runs until cancelled.

        A thread cannot be ended, so the process has to end.
        """
        while not self._closed:
            await asyncio.sleep(min(1.0, stall_s / 4))
            self.health.awake.tick()
            if self.health.step_s > stall_s and not self._closed:
                self._give_up(_thread_stuck(self.health.step_s))

    def close(self) -> None:
        """End the threads after their running batches, for which this waits only briefly. Waiting requests fail."""
        with self.wake:
            self._closed = True
            self.wake.notify_all()
        end = time.monotonic() + JOIN_S
        for each in self._threads:
            each.thread.join(max(0.0, end - time.monotonic()))
        self._fail_all(_stopping())

    def _give_up(self, failure: QueueFull) -> None:
        """Fail all requests, now and later, and report the failure."""
        self.health.dead = True
        with self.wake:
            if self._failure:
                return  # another thread has failed before
            self._closed, self._failure = True, failure
            self.wake.notify_all()
        with suppress(RuntimeError):  # the event loop is closed
            self._fail_all(failure)
            if self._on_death:
                self._loop.call_soon_threadsafe(self._on_death, failure)

    def _fail_all(self, error: SIEError) -> None:
        """Fail every call and every job that has no result yet."""
        with self.wake:
            waiting = [call.done for call in self._calls] + [ticket.done for ticket in self._pending]
            self._calls = []
            for thread in self._threads:
                thread.apart.clear()
            self._queue.clear()
        for done in waiting:
            self._loop.call_soon_threadsafe(resolve, done, None, error)

    # ── the device threads call everything below ──

    @property
    def closed(self) -> bool:
        """Whether the threads end. Under the lock."""
        return self._closed

    def has_work(self, place: int, *, own: bool) -> bool:
        """Return whether the thread of that place has something to do, or only it (`own`). Under the lock."""
        if self._closed or self._call_for(place, own=own):
            return True
        return not own and bool(self._queue)

    def _call_for(self, place: int, *, own: bool) -> _Call | None:
        places = (place,) if own else (None, place)
        return next((call for call in self._calls if call.place in places), None)

    def others_serve(self, place: int) -> bool:
        """Return whether a pass can run in the thread of another place."""
        return any(not thread.spoiled for other, thread in enumerate(self._threads) if other != place)

    def next_call(self, place: int, *, own: bool) -> Call | None:
        """Return the next call for the thread of that place, or only for it (`own`). Under the lock."""
        call = self._call_for(place, own=own)
        if call is None or self._closed:
            return None
        self._calls.remove(call)
        return call.function, call.done

    def take(self) -> Batch[PendingTicket] | None:
        """Return the next batch. Under the lock."""
        batch = self._queue.take()
        self._metrics.queue_tokens.set(self._queue.tokens_waiting)
        if self._queue:
            self._wake_thread()  # another thread takes the batch after this one
        return batch

    def batch_ended(
        self, batch: Batch[PendingTicket], tokens: int, seconds: float, failures: dict[Job, SIEError]
    ) -> None:
        """Count a batch, and drop the rest of the requests that have failed."""
        engine = batch.tickets[0].engine
        self._metrics.batch(tokens, engine.batch_tokens, seconds)
        self._metrics.busy.inc(seconds / len(self._threads))
        with self.wake:
            self._busy_s += seconds
            if len(batch.works) > 1:  # a small batch says little about the rate of a full queue
                engine.tokens_per_second += 0.2 * (tokens / seconds - engine.tokens_per_second)
            for ticket in batch.tickets:
                if ticket.failure(failures):
                    self._drop(ticket)
            self._queue.release(batch)
            if self._queue:
                self._wake_thread()

    def test(self) -> SIEError | None:
        """Run the failing models on texts of the server; return the error of one that fails again."""
        return self.health.test(self._self_test)

    def on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the event loop."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def thread_died(self, error: BaseException, failure: QueueFull) -> None:
        """Fail all requests: without the thread some would wait indefinitely."""
        if self._closed and self._loop.is_closed():
            return  # a batch ended after the program: its result has no reader
        log.critical("the device thread has failed", exc_info=error)
        self._give_up(failure)


def _thread_stuck(seconds: float) -> QueueFull:
    log.critical("the device thread has been in one step for %.0f s (device_stall_s)", seconds)
    return QueueFull(
        f"the device thread is stuck: one step has taken {seconds:.0f} s, longer than device_stall_s; "
        "the server is stopping",
        retry_after_s=1,
    )


def _stopping() -> QueueFull:
    return QueueFull("the server is shutting down", retry_after_s=1)
