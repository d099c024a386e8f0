"""A simulation of callers, admission, queue and device with a clock of its own, so that tests take no time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sie_server.engine.job import build_job
from sie_server.errors import QueueFull
from sie_server.models.batch import Tokens
from sie_server.serving.admission.admission import Admission, Arrival
from sie_server.serving.device.queue import Batch, Demand, Place, Ticket, TokenQueue, tokens_of
from sie_server.wire import Priority


class Model:
    """A model with a measured rate."""

    batch_tokens, tokens_per_second = 2000, 20_000.0


@dataclass(eq=False)
class Caller:
    """One request and its outcome."""

    arrived: float
    documents: int
    patience: float
    priority: Priority | None = None
    deadline: float | None = None
    ticket: Ticket | None = None
    block: AbstractContextManager[Any] | None = None
    answered: float | None = None
    left: float | None = None
    refused: float | None = None  # Retry-After in seconds
    returns: Iterator[Caller] | None = None  # the same caller's next tries


@dataclass
class Simulation:
    """Runs callers against the real queue and admission."""

    max_wait_s: float = 20.0
    tokens_per_document: int = 100
    seed: int = 1
    now: float = 0.0
    outcomes: list[Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = Model()
        self.queue: TokenQueue[Ticket] = TokenQueue(10_000_000)
        self.admission = Admission(self, self.max_wait_s, lambda: self.now, random.Random(self.seed).random)
        self._events: list[tuple[float, int, Any, Any]] = []
        self._order = itertools.count()
        self._running: tuple[Batch[Ticket], float] | None = None
        self._callers: dict[Ticket, Caller] = {}

    @property
    def typical_tokens(self) -> int:
        return int(self.queue.typical_tokens)

    def seconds_until_done(self, demand: Demand) -> float:
        rest = max(0.0, self._running[1] - self.now) if self._running else 0.0
        return rest + self.queue.seconds_until_done(demand)

    def seconds_until_fit(self, demand: Demand) -> float:
        return self.queue.seconds_of(self.queue.excess(demand.tokens))

    def expect(self, demand: Demand) -> Place:
        return self.queue.expect(demand)

    def forget(self, place: Place) -> None:
        self.queue.forget(place)

    def add(self, caller: Caller) -> None:
        """Let a caller arrive."""
        self._at(caller.arrived, self._arrive, caller)

    def poisson(
        self, rate: float, start: float, end: float, patience: float, documents: int = 5, **more: Any
    ) -> None:
        """Add callers who arrive independently of each other."""
        rng, at = random.Random(f"{rate} {start}"), start
        while (at := at + rng.expovariate(rate)) < end:
            self.add(Caller(at, documents, patience, **more))

    def run(self, end: float) -> None:
        """Process all events until `end`."""
        while self._events and self._events[0][0] <= end:
            self.now, _, action, argument = heapq.heappop(self._events)
            action(argument)
        self.now = end

    def answers(self, start: float, end: float) -> int:
        """Return how many answers arrived in that time."""
        return sum(c.answered is not None and start <= c.answered < end for c in self.outcomes)

    def _at(self, time: float, action: Any, argument: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), action, argument))

    def _arrive(self, caller: Caller) -> None:
        self.outcomes.append(caller)
        characters = caller.documents * 400
        tokens = self.admission.ratios.tokens(self.model, characters)
        arrival = Arrival(Demand(self.model, tokens, caller.priority), self.now, caller.deadline)
        caller.block = self.admission.admit(arrival, characters)
        try:
            admitted = caller.block.__enter__()
        except QueueFull as error:
            caller.refused = error.retry_after_s
            if caller.returns:
                self._again(caller.returns)
            return
        sequences = [
            Tokens(np.full(self.tokens_per_document, i, np.int32), self.tokens_per_document)
            for i in range(caller.documents)
        ]
        job = build_job(("score",), sequences, [False] * caller.documents)
        ticket = Ticket(self.model, job, priority=caller.priority)
        admitted.queued(job.tokens)
        self.queue.admit(ticket)
        caller.ticket, self._callers[ticket] = ticket, caller
        self._at(self.now + caller.patience, self._leave, caller)
        self._start()

    def _again(self, returns: Iterator[Caller]) -> None:
        following = next(returns, None)
        if following is not None:
            following.returns = returns
            self.add(following)

    def _leave(self, caller: Caller) -> None:
        if caller.answered is None and caller.ticket and caller.block:
            caller.left = self.now
            self.queue.drop(caller.ticket)
            error = asyncio.CancelledError()
            with suppress(asyncio.CancelledError):
                caller.block.__exit__(type(error), error, None)

    def _start(self) -> None:
        if self._running is None and (batch := self.queue.take()):
            end = self.now + 0.001 + tokens_of(batch.works) / self.model.tokens_per_second
            self._running = batch, end
            self._at(end, self._finish, batch)

    def _finish(self, batch: Batch[Ticket]) -> None:
        self._running = None
        for ticket in batch.tickets:
            caller = self._callers[ticket]
            last = ticket.work[-1]
            if last in batch.works and caller.left is None and caller.block:
                caller.answered = self.now
                caller.block.__exit__(None, None, None)
        self._start()
