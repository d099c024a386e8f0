"""The device thread: takes the next batch, runs it, delivers results to the event loop. Owns the queue.

One thread per device, because two forward passes at once on the same cores or the same GPU only slow each other down.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sie_server.engine.device import out_of_memory, use_cpu_threads
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, Work
from sie_server.errors import InferenceError, QueueFull, ResourceExhausted, SIEError
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.queue import Batch, Ticket, TokenQueue

log = logging.getLogger("sie_server.worker")
Result = TypeVar("Result")


class PendingTicket(Ticket):
    """A ticket somebody on the event loop is waiting for."""

    def __init__(self, engine: Engine, job: Job, timing: RequestTiming) -> None:
        super().__init__(engine, job)
        self.timing = timing
        self.unfinished = len(job.work)
        self.submitted = time.perf_counter()
        self.started = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class DeviceWorker:
    """Puts jobs through models, in batches across requests."""

    def __init__(self, max_queue_tokens: int, cpu_threads: int, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue = TokenQueue(max_queue_tokens)
        self._calls: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._metrics = metrics
        self._thread = threading.Thread(
            target=self._work, args=(cpu_threads,), name="sie-device", daemon=True
        )
        self._thread.start()

    async def run(self, engine: Engine, job: Job, timing: RequestTiming) -> None:
        """Wait until every result of `job` is there. Cancelling the wait drops what was not begun.

        Raises:
            QueueFull, InferenceError, ResourceExhausted
        """
        ticket = PendingTicket(engine, job, timing)
        with self._wake:
            if self._closed:
                raise _shutting_down()
            self._queue.admit(ticket)
            self._metrics.queue_tokens.set(self._queue.tokens_waiting)
            self._wake.notify()
        try:
            await ticket.done
        except asyncio.CancelledError:
            with self._wake:
                self._drop(ticket)
            raise
        finally:
            job.release()

    def _drop(self, ticket: Ticket) -> None:
        self._queue.drop(ticket)
        self._metrics.queue_tokens.set(self._queue.tokens_waiting)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the device thread, between two batches.

        Raises:
            QueueFull: the server is shutting down; and whatever `function` raises.
        """
        done: asyncio.Future[Result] = self._loop.create_future()
        with self._wake:
            if self._closed:
                raise _shutting_down()
            self._calls.append((function, done))
            self._wake.notify()
        return await done

    async def score_known(self, engine: Engine, job: Job, timing: RequestTiming) -> None:
        """Score the documents of `job` that need no forward pass; all arithmetic happens on the device thread.

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
            raise _as_answer(error) from error
        timing.inference_ms += (time.perf_counter() - started) * 1e3

    def close(self) -> None:
        """Finish the batch in hand and end the thread; who still waits is told that the server shuts down."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)
        with self._wake:
            waiting = [done for _, done in self._calls] + [t.done for t in self._queue.clear()]  # type: ignore[attr-defined]  # tickets are `PendingTicket`s
            self._calls = []
        for done in waiting:
            self._loop.call_soon_threadsafe(_resolve, done, None, _shutting_down())

    # ── everything below runs on the device thread ──

    def _work(self, cpu_threads: int) -> None:
        use_cpu_threads(cpu_threads)
        while self._step():
            pass

    def _step(self) -> bool:
        """The next call, then the next batch: neither keeps the other out. False at the end.

        While it waits it holds on to no model.
        """
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self._calls or self._queue)
            call = self._calls.pop(0) if self._calls and not self._closed else None
        if call:
            self._run_call(*call)
            del call
        with self._wake:
            if self._closed:
                return False
            batch = self._queue.take()
            self._metrics.queue_tokens.set(self._queue.tokens_waiting)
        if batch:
            self._run_batch(batch)
        return True

    def _run_call(self, function: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, done, function(), None)
        except Exception as error:
            self._loop.call_soon_threadsafe(_resolve, done, None, error)

    def _run_batch(self, batch: Batch) -> None:
        start = time.perf_counter()
        failures = run_isolated(batch.model, batch.works)  # type: ignore[arg-type]  # tickets carry engines
        end = time.perf_counter()
        tokens = sum(len(work.tokens) for work in batch.works)
        self._metrics.batch_tokens.observe(tokens)
        _learn_rate(batch, tokens / (end - start))
        with self._wake:
            for ticket in batch.tickets:
                if ticket.job in failures:
                    self._drop(ticket)
        self._loop.call_soon_threadsafe(_deliver, batch, failures, start, end)


def _shutting_down() -> QueueFull:
    return QueueFull("the server is shutting down", retry_after_s=1)


def _learn_rate(batch: Batch, rate: float) -> None:
    # small batches say little about the rate of a full queue, which is what Retry-After is computed from
    if len(batch.works) > 1:
        batch.model.tokens_per_second += 0.1 * (rate - batch.model.tokens_per_second)


def _deliver(batch: Batch, failures: dict[Job, SIEError], start: float, end: float) -> None:
    """On the event loop: note the times, and wake those whose job is finished or failed."""
    for ticket in batch.tickets:
        assert isinstance(ticket, PendingTicket)
        if not ticket.started:
            ticket.started = True
            ticket.timing.queue_ms += (start - ticket.submitted) * 1e3
        ticket.timing.inference_ms += (end - start) * 1e3
        ticket.unfinished -= sum(1 for work in batch.works if work.job is ticket.job)
        if ticket.job in failures:
            _resolve(ticket.done, None, failures[ticket.job])
        elif ticket.unfinished == 0:
            _resolve(ticket.done, None, None)


def _resolve(done: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    if done.done():  # the caller has gone, or an earlier part of the job failed
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(value)


def run_isolated(engine: Engine, works: list[Work]) -> dict[Job, SIEError]:
    """Run works and put results into their jobs; returns the jobs that failed.

    A failing batch is run again job by job, so that one request's failure never costs another its answer; one that
    does not fit into memory is halved.
    """
    jobs = list(dict.fromkeys(work.job for work in works))
    try:
        for work, result in zip(works, engine.run(works), strict=True):
            if work.index != QUERY:
                work.job.put(work.index, result)
        return {}
    except Exception as error:
        failure, too_large = _as_answer(error), out_of_memory(error) and len(works) > 1
        if len(jobs) == 1 and not too_large:
            log.exception("a forward pass failed")
    # outside of the handler nothing holds on to the tensors of the failed pass any more
    if len(jobs) > 1:
        parts = [[work for work in works if work.job is job] for job in jobs]
        return {job: failure for part in parts for job, failure in run_isolated(engine, part).items()}
    if too_large:
        half = len(works) // 2
        return run_isolated(engine, works[:half]) or run_isolated(engine, works[half:])
    return {jobs[0]: failure}


def _as_answer(error: Exception) -> SIEError:
    if out_of_memory(error):
        return ResourceExhausted(
            "the device ran out of memory for a single text; send shorter texts", retry_after_s=5
        )
    return InferenceError(f"the model failed: {type(error).__name__}")
