"""Jobs of callers that wait on the event loop, and the delivery of their results."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.errors import SIEError
from sie_server.serving.device.queue import Batch, Ticket
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import Priority


class PendingTicket(Ticket):
    """A ticket that a coroutine on the event loop waits for."""

    def __init__(self, engine: Engine, job: Job, timing: RequestTiming, priority: Priority | None) -> None:
        super().__init__(engine, job, priority)
        self.engine, self.timing = engine, timing
        self.unfinished = len(job.work)
        self.submitted = time.perf_counter()
        self.started = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def deliver(batch: Batch[PendingTicket], failures: dict[Job, SIEError], start: float, end: float) -> None:
    """On the event loop: record the times, and wake the callers whose job has finished or failed."""
    for ticket in batch.tickets:
        if not ticket.started:
            ticket.started = True
            ticket.timing.queue_ms += (start - ticket.submitted) * 1e3
        ticket.timing.inference_ms += (end - start) * 1e3
        ticket.unfinished -= sum(1 for work in batch.works if work.job is ticket.job)
        if ticket.job in failures:
            resolve(ticket.done, None, failures[ticket.job])
        elif ticket.unfinished == 0:
            resolve(ticket.done, None, None)


def resolve(done: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    """Give a waiting coroutine its result or error, unless it has one or its caller has gone."""
    if done.done():
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(value)
