"""A simulated model replica: the server's own scheduling policy in front of a device whose speed is a number."""

from __future__ import annotations

from dataclasses import dataclass

from bench.scale.events import Action, Loop

from sie_server.engine.job import Job
from sie_server.serving.device.queue import Batch, Ticket, TokenQueue

UNBOUNDED = 2**60  # tokens: admission would refuse requests and hide how long they wait


@dataclass(frozen=True)
class Device:
    """The speed of a model on a device. The time of a batch is proportional to its tokens."""

    tokens_per_second: float
    batch_tokens: int

    def seconds(self, tokens: float) -> float:
        return tokens / self.tokens_per_second


class Part(Ticket):
    """A request, or a part of one, at one replica."""

    def __init__(self, device: Device, job: Job, done: Action, *, bulk: bool) -> None:
        super().__init__(device, job, priority="bulk" if bulk else None)
        self.tokens, self.done = self.tokens_waiting, done


class Replica:
    """A device thread, which takes one batch after the other from the queue."""

    def __init__(self, loop: Loop, device: Device, name: str) -> None:
        self._loop, self._device, self.name = loop, device, name
        self._queue: TokenQueue[Part] = TokenQueue(UNBOUNDED)
        self._is_running = False
        self._tokens = {False: 0, True: 0}  # of unfinished parts, by lane (True: bulk)
        self.requests = 0  # unfinished parts
        self.busy_s = 0.0

    def submit(self, job: Job, done: Action, *, bulk: bool = False) -> None:
        """Queue a job; `done` is called when it is finished. A small part of a bulk job stays in the bulk lane."""
        part = Part(self._device, job, done, bulk=bulk)
        self._count(part, 1)
        self._queue.admit(part)
        if not self._is_running:
            self._next()

    @property
    def backlog_s(self) -> float:
        """Device time of all unfinished parts."""
        return self._device.seconds(sum(self._tokens.values()))

    @property
    def interactive_backlog_s(self) -> float:
        """Device time that an interactive request waits for at most: its own lane, and one batch of bulk jobs."""
        bulk = min(self._tokens[True], self._device.batch_tokens)
        return self._device.seconds(self._tokens[False] + bulk)

    def _count(self, part: Part, sign: int) -> None:
        self._tokens[part.demand.bulk] += sign * part.tokens
        self.requests += sign

    def _next(self) -> None:
        before = self._queue.tokens_waiting
        batch = self._queue.take()
        self._is_running = batch is not None
        if batch is not None:
            seconds = self._device.seconds(before - self._queue.tokens_waiting)
            self.busy_s += seconds
            self._loop.after(seconds, lambda: self._end(batch))

    def _end(self, batch: Batch[Part]) -> None:
        finished = [part for part in batch.tickets if part.exhausted]
        for part in finished:
            self._count(part, -1)
        self._next()
        for part in finished:
            part.done()
