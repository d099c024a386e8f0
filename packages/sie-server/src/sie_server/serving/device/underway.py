"""Batches between their launch and their results.

A GPU computes on its own, so the next batch is packed and launched while one runs: the device has work at every moment.
The price is fairness: a request that arrives waits for up to two batches in addition to those before it in the queue,
because a batch that has been launched cannot be taken back. On a CPU a batch ends where it is launched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sie_server.engine.engine import Engine
from sie_server.engine.forward import Flight
from sie_server.engine.steps import Step, recorded
from sie_server.serving.device.isolation import launch
from sie_server.serving.device.queue import Batch, tokens_of
from sie_server.serving.device.tickets import PendingTicket


class Underway:
    """A batch on the device, its start and its steps."""

    def __init__(self, batch: Batch[PendingTicket], engine: Engine) -> None:
        self.batch, self.engine = batch, engine
        self.tokens, self.start = tokens_of(batch.works), time.perf_counter()
        self.flight: Flight | None = None  # None: not launched, it runs where its results are needed
        self.steps: list[Step] = []
        self._traced = any(ticket.timing.steps is not None for ticket in batch.tickets)

    def launch(self) -> None:
        """Start the batch on a device that runs it on its own."""
        with self.recorded():
            self.flight = launch(self.engine, self.batch.works)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Add the steps inside the context to those of the batch, if one of its requests is traced."""
        with recorded(on=self._traced) as steps:
            yield
        self.steps += steps
