"""What the device does next: pure policy over waiting jobs, without clock, threads or models.

Work is counted in tokens. A job has turns of at most `TURN_BATCHES` batches, and its place is its *due*: the tokens
handed to the device when its turn was set, plus the tokens of the turn. So equal jobs of one turn are first come, first
served; a small job passes a bulk job, which goes back in line after every turn; and a turn is passed only by work that
came in while the device was handed one turn's worth of tokens. Nobody starves, and nobody waits for more than a turn of
a bulk job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sie_server.engine.job import Job, Work
from sie_server.errors import QueueFull

TURN_BATCHES = 4  # a hundred passages of natural length are about one turn


class Model(Protocol):
    """What the policy needs to know of an engine."""

    batch_tokens: int
    tokens_per_second: float


@dataclass(eq=False)
class Ticket:
    """A job in the queue."""

    model: Model
    job: Job
    due: int = 0
    turn_left: int = 0  # tokens
    tokens_waiting: int = field(init=False)
    next_work: int = 0

    def __post_init__(self) -> None:
        self.tokens_waiting = self.job.tokens

    @property
    def exhausted(self) -> bool:
        """True when all its work has been handed out."""
        return self.next_work >= len(self.job.work)


@dataclass(frozen=True)
class Batch:
    """Works for one forward pass of one model, and the tickets they are from."""

    model: Model
    works: list[Work]
    tickets: list[Ticket]


class TokenQueue:
    """Waiting tickets; admission by tokens, batches by due. Not thread-safe: the worker locks around it."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._tickets: list[Ticket] = []
        self._handed_out = 0  # tokens, since the start

    @property
    def tokens_waiting(self) -> int:
        return sum(ticket.tokens_waiting for ticket in self._tickets)

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def admit(self, ticket: Ticket) -> None:
        """Let a job in.

        A job larger than the whole queue is let into an empty one, so that size alone never refuses a request.

        Raises:
            QueueFull: with the seconds after which so much will have been done that the job fits.
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
        self._set_turn(ticket)
        self._tickets.append(ticket)

    def _set_turn(self, ticket: Ticket) -> None:
        ticket.turn_left = min(ticket.tokens_waiting, TURN_BATCHES * ticket.model.batch_tokens)
        ticket.due = self._handed_out + ticket.turn_left

    def _seconds(self, tokens: int) -> float:
        """How long the device needs for the next `tokens` tokens, at each model's measured rate."""
        waiting = self.tokens_waiting
        whole = sum(ticket.tokens_waiting / ticket.model.tokens_per_second for ticket in self._tickets)
        return max(1.0, whole * tokens / waiting)

    def drop(self, ticket: Ticket) -> None:
        """Forget what is left of a job (its caller has gone, or part of it failed)."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def clear(self) -> list[Ticket]:
        """Forget everything; what was waiting."""
        waiting, self._tickets = self._tickets, []
        return waiting

    def take(self) -> Batch | None:
        """The next batch, or None when nothing waits; never waits for more to come."""
        if not self._tickets:
            return None
        by_due = sorted(self._tickets, key=lambda ticket: ticket.due)
        model = by_due[0].model
        works: list[Work] = []
        taken: list[Ticket] = []
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
            if ticket.turn_left <= 0:
                self._set_turn(ticket)
        return Batch(model, works, taken)


def _take_from(ticket: Ticket, room: int, *, at_least_one: bool) -> list[Work]:
    """The ticket's next works, as many as fit into `room` tokens."""
    first, work = ticket.next_work, ticket.job.work
    while not ticket.exhausted:
        size = len(work[ticket.next_work].tokens)
        if size > room and not (at_least_one and ticket.next_work == first):
            break
        room -= size
        ticket.tokens_waiting -= size
        ticket.turn_left -= size
        ticket.next_work += 1
    return work[first : ticket.next_work]
