"""Requests whose callers wait on the event loop, and the delivery of their results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.engine.steps import Step
from sie_server.errors import SIEError
from sie_server.serving.device.queue import Batch, Ticket
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Priority


class TicketClosed(Exception):
    """More work came for a request that has failed or whose caller has gone; `PendingTicket.done` has its error."""


class PendingTicket(Ticket):
    """A ticket that a coroutine on the event loop waits for."""

    def __init__(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        timing: RequestTiming,
        priority: Priority | None,
        expected: int = 0,
    ) -> None:
        """`expected`: see `Ticket`."""
        super().__init__(engine, *jobs, priority=priority, expected=expected)
        self.engine, self.timing = engine, timing
        self.finished = 0  # works; counted on the event loop
        self.submitted = time.perf_counter()  # its first works
        self.started = False
        self._computed: list[tuple[float, float]] = []  # times of its batches, apart and in order
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def complete(self) -> bool:
        """True when all its works have results. Works are added before `growing` ends, so no lock is needed."""
        return not self.growing and self.finished >= len(self.work)

    def settle(self) -> None:
        """End the wait: its result or error is no longer read."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()

    def seconds_in(self, start: float, end: float) -> float:
        """Return the time of a batch in which no earlier one of the request ran: several threads overlap."""
        known = 0.0
        while self._computed and self._computed[-1][1] > start:
            began, ended = self._computed.pop()
            start, end, known = min(start, began), max(end, ended), known + ended - began
        self._computed.append((start, end))
        return end - start - known

    def failure(self, failures: Mapping[Job, SIEError]) -> SIEError | None:
        """Return the error of the first of its jobs that failed."""
        return next((failures[job] for job in self.jobs if job in failures), None) if failures else None


def deliver(
    batch: Batch[PendingTicket],
    failures: dict[Job, SIEError],
    start: float,
    end: float,
    steps: Sequence[Step],
) -> None:
    """On the event loop: record the times, and wake the callers whose jobs have finished or failed."""
    for ticket in batch.tickets:
        if not ticket.started:
            ticket.started = True
            ticket.timing.queue_ms += (start - ticket.submitted) * 1e3
            ticket.timing.step("queue", ticket.submitted, start)
        ticket.timing.inference_ms += ticket.seconds_in(start, end) * 1e3
        for step in steps:
            ticket.timing.step(step.name, step.started, step.ended, **batch.size)
        ticket.finished += sum(1 for work in batch.works if work.job in ticket.jobs)
        if failure := ticket.failure(failures):
            resolve(ticket.done, None, failure)
        elif ticket.complete:
            resolve(ticket.done, None, None)


def resolve(done: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    """Give a waiting coroutine its result or error, unless it has one or its caller has gone."""
    if done.done():
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(value)
