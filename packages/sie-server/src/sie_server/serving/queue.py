"""Scheduling order: which work the device does next. Pure policy over waiting jobs, without a clock, threads or models.

Work is counted in tokens. A job is served in slices of at most `SLICE_BATCHES` batches. The scheduling key of a job is
its *due*: the tokens handed to the device when its slice was set, plus the tokens of the slice. So equal jobs of one
slice are served first come, first served. A small job overtakes a bulk job, which returns to the queue after every
slice. Only work that arrives while the device is handed one slice of tokens can overtake a slice. No job starves, and
no job waits for more than one slice of a bulk job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from sie_server.engine.job import Job, Work
from sie_server.errors import QueueFull

SLICE_BATCHES = 4  # a hundred passages of natural length are about one slice


class Model(Protocol):
    """The properties of an engine that the policy uses."""

    batch_tokens: int
    tokens_per_second: float


@dataclass(eq=False)
class Ticket:
    """A job in the queue."""

    model: Model
    job: Job
    due: int = 0
    slice_left: int = 0  # tokens
    tokens_waiting: int = field(init=False)
    next_work: int = 0

    def __post_init__(self) -> None:
        self.tokens_waiting = self.job.tokens

    @property
    def exhausted(self) -> bool:
        """True when all its work has been handed out."""
        return self.next_work >= len(self.job.work)


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """The work of one forward pass of one model, and the tickets it belongs to."""

    works: list[Work]
    tickets: list[T]


class TokenQueue(Generic[T]):
    """Waiting tickets, admitted by tokens and batched by due. Not thread-safe: the worker holds a lock."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tickets: list[T] = []
        self._handed_out = 0  # tokens since the start

    @property
    def tokens_waiting(self) -> int:
        return sum(ticket.tokens_waiting for ticket in self._tickets)

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def admit(self, ticket: T) -> None:
        """Add a job.

        An empty queue admits a job larger than itself, so that size alone never refuses a request.

        Raises:
            QueueFull: with the seconds after which the job will fit.
        """
        waiting = self.tokens_waiting
        excess = waiting + ticket.tokens_waiting - self._max_tokens
        if waiting and excess > 0:
            seconds = self._seconds(min(excess, waiting))
            raise QueueFull(
                f"{waiting} tokens are waiting and {ticket.tokens_waiting} more do not fit "
                f"(max_queue_tokens {self._max_tokens}); try again in {seconds:.0f} s",
                retry_after_s=seconds,
            )
        self._start_slice(ticket)
        self._tickets.append(ticket)

    def _start_slice(self, ticket: T) -> None:
        ticket.slice_left = min(ticket.tokens_waiting, SLICE_BATCHES * ticket.model.batch_tokens)
        ticket.due = self._handed_out + ticket.slice_left

    def _seconds(self, tokens: int) -> float:
        """Estimate the device time of the next `tokens` tokens, at the measured rate of each model."""
        waiting = self.tokens_waiting
        whole = sum(ticket.tokens_waiting / ticket.model.tokens_per_second for ticket in self._tickets)
        return max(1.0, whole * tokens / waiting)

    def drop(self, ticket: T) -> None:
        """Forget the rest of a job whose caller has gone or whose work has failed."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def clear(self) -> list[T]:
        """Empty the queue; return the tickets that were waiting."""
        waiting, self._tickets = self._tickets, []
        return waiting

    def take(self) -> Batch[T] | None:
        """Return the next batch, or None when the queue is empty. Never waits for more work."""
        if not self._tickets:
            return None
        by_due = sorted(self._tickets, key=lambda ticket: ticket.due)
        model = by_due[0].model
        works: list[Work] = []
        taken: list[T] = []
        room = model.batch_tokens
        for ticket in by_due:
            if ticket.model is model:
                part = _take_from(ticket, room, at_least_one=not works)
                if part:
                    works += part
                    taken.append(ticket)
                    room -= sum(len(work.tokens) for work in part)
            if room <= 0:
                break
        self._handed_out += sum(len(work.tokens) for work in works)
        self._tickets = [ticket for ticket in self._tickets if not ticket.exhausted]
        for ticket in taken:
            if ticket.slice_left <= 0:
                self._start_slice(ticket)
        return Batch(works, taken)


def _take_from(ticket: Ticket, room: int, *, at_least_one: bool) -> list[Work]:
    """Take the next work of a ticket, as much as fits into `room` tokens."""
    first, work = ticket.next_work, ticket.job.work
    while not ticket.exhausted:
        size = len(work[ticket.next_work].tokens)
        if size > room and not (at_least_one and ticket.next_work == first):
            break
        room -= size
        ticket.tokens_waiting -= size
        ticket.slice_left -= size
        ticket.next_work += 1
    return work[first : ticket.next_work]
