"""Scheduling order: which work the device does next. Pure policy over waiting jobs, without a clock, threads or models.

Work is counted in tokens. A job is served in *slices*. The scheduling key of a slice is its *due*: the tokens handed to
the device when the slice was set, plus a distance in tokens. Only work that arrives while the device is handed that
distance can overtake a slice, so no job starves.

A job has one of two lanes. In the interactive lane, a slice has at most `SLICE_BATCHES` batches, and its distance is
its own length in whole batches. So jobs of at most one batch are served first come, first served, and before larger
ones. In the bulk lane, a slice is one batch, and jobs alternate. The whole lane has one due: `SLICE_BATCHES` batches
after its last work. So an interactive job waits for at most one batch of bulk jobs, in addition to the running one. On
a GPU two batches are under way (`underway`), so it waits for one more.

A ticket may *grow*: its first works wait or run while the texts of the others are tokenised. It has the lane and the
tokens that are expected of the whole request, until the whole request is known. While it has no work at hand, the
other tickets are served, and it keeps its due.

Several device threads take their batches from the same order. A job whose later works need what its first ones compute
(the vectors of its query, the states of a shared prefix) has no work in two batches until those have ended. If it is
larger than a batch, its query is in a batch without its other works, so that idle threads soon get those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from sie_server.engine.job import QUERY, Job, Work
from sie_server.errors import QueueFull

if TYPE_CHECKING:
    from sie_server.wire import Priority

SLICE_BATCHES = 4  # a hundred passages of natural length are about one slice
TYPICAL_TOKENS = 512.0  # of a job, before any is known
TYPICAL_SHARE = 0.1  # of the newest job in the moving average


class Model(Protocol):
    """The properties of an engine that the policy uses."""

    batch_tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Demand:
    """The device work of a job: what the policy knows of it, before and after it is tokenised."""

    model: Model
    tokens: int
    priority: Priority | None = None  # None: the lane follows from the size

    @property
    def bulk(self) -> bool:
        """Return whether the job runs in the bulk lane."""
        if self.priority is not None:
            return self.priority == "bulk"
        return self.tokens > SLICE_BATCHES * self.model.batch_tokens

    @property
    def seconds(self) -> float:
        """Device time of the whole job."""
        return self.tokens / self.model.tokens_per_second

    def slice_of(self, tokens: int) -> int:
        """Return the length of the next slice when `tokens` are left."""
        batches = 1 if self.bulk else SLICE_BATCHES
        return min(tokens, batches * self.model.batch_tokens)

    def distance(self, slice_tokens: int) -> int:
        """Return the tokens between the start of a slice and its due: whole batches.

        Otherwise every slightly smaller job that arrives during a batch would overtake the jobs that wait already.
        """
        batch = self.model.batch_tokens
        return max(1, math.ceil(slice_tokens / batch)) * batch


class Place:
    """The place of a demand in the queue: of a job, or of a request whose texts are being tokenised."""

    def __init__(self, demand: Demand) -> None:
        self.demand, self.model = demand, demand.model
        self.tokens_waiting = demand.tokens
        self.slice_left = self.due = 0  # in tokens

    def start_slice(self, handed_out: int) -> None:
        """Begin the next slice."""
        self.slice_left = self.demand.slice_of(self.tokens_waiting)
        self.due = handed_out + self.demand.distance(self.slice_left)


class Ticket(Place):
    """A request in the queue: one job, or one per query. The queue treats their work as that of one job."""

    def __init__(self, model: Model, *jobs: Job, priority: Priority | None = None, expected: int = 0) -> None:
        """`expected` is an estimate of the tokens that follow (`TokenQueue.grow`); 0: the ticket is whole."""
        self.known_tokens = sum(job.tokens for job in jobs)
        super().__init__(Demand(model, self.known_tokens + expected, priority))
        self.jobs = dict.fromkeys(jobs)  # in order
        self.work = [work for job in jobs for work in job.work]
        self.next_work = 0
        self.growing = expected > 0
        self.closed = False  # its caller has gone, or it has failed: it takes no more work
        self.awaited: Work | None = None  # is running, and the next works need what it computes

    @property
    def exhausted(self) -> bool:
        """True when all work that it has so far has been handed out."""
        return self.next_work >= len(self.work)

    @property
    def ready(self) -> bool:
        """True when work may be handed out now."""
        return self.awaited is None and not self.exhausted

    @property
    def over(self) -> bool:
        """True when all its work has been handed out and no more follows."""
        return self.exhausted and not self.growing

    def demand_with(self, works: Sequence[Work], *, whole: bool) -> Demand:
        """Return the demand when `works` are added: what is expected, until the whole request is known."""
        known = self.known_tokens + tokens_of(works)
        return replace(self.demand, tokens=known if whole else max(known, self.demand.tokens))

    def extend(self, works: Sequence[Work], demand: Demand, *, whole: bool) -> None:
        """Add works; `demand` is that of `demand_with`."""
        self.tokens_waiting += demand.tokens - self.demand.tokens
        self.demand = demand
        self.known_tokens += tokens_of(works)
        self.jobs |= dict.fromkeys(work.job for work in works)
        self.work += works
        self.growing = not whole


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """The work of one forward pass of one model, and the tickets it belongs to."""

    works: list[Work]
    tickets: list[T]

    @property
    def size(self) -> dict[str, int]:
        """Attributes of its steps in a trace."""
        return {
            "sie.batch.requests": len(self.tickets),
            "sie.batch.sequences": len(self.works),
            "sie.batch.tokens": tokens_of(self.works),
        }

    def parts(self) -> list[Batch[T]]:
        """Divide the batch: one of each request, or the halves of a request's works; none of a single work."""
        if len(self.tickets) > 1:
            apart = [[work for work in self.works if work.job in ticket.jobs] for ticket in self.tickets]
            return [Batch(works, [ticket]) for works, ticket in zip(apart, self.tickets, strict=True)]
        half = len(self.works) // 2
        return (
            [Batch(works, self.tickets) for works in (self.works[:half], self.works[half:])] if half else []
        )


class TokenQueue(Generic[T]):
    """Waiting tickets, admitted by tokens and batched by due. Not thread-safe: the worker holds a lock."""

    def __init__(self, max_tokens: int, threads: int = 1) -> None:
        """`threads` device threads take batches; the rate of a model is that of one of them."""
        self._max_tokens, self._threads = max_tokens, threads
        self._tickets: list[T] = []
        self._expected: set[Place] = set()  # no jobs yet
        self._handed_out = 0  # tokens since the start
        self._bulk_due = 0  # of the bulk lane
        self.tokens_waiting = 0
        self.typical_tokens = TYPICAL_TOKENS  # of a job: moving average

    def __bool__(self) -> bool:
        """Return whether there is work that may be handed out now."""
        return any(ticket.ready for ticket in self._tickets)

    def admit(self, ticket: T) -> None:
        """Add a job, as far as it is known.

        An empty queue admits a job larger than itself, so that size alone never refuses a request.

        Raises:
            QueueFull: with the seconds after which the job will fit.
        """
        self._check_fit(ticket.tokens_waiting, self.tokens_waiting)
        self._tickets.append(ticket)
        self.tokens_waiting += ticket.tokens_waiting
        self._enter_lane(ticket)
        self.typical_tokens += TYPICAL_SHARE * (ticket.tokens_waiting - self.typical_tokens)

    def grow(self, ticket: T, works: Sequence[Work], *, whole: bool) -> None:
        """Add works to a ticket; the first ones admit it. `whole`: no more follow.

        Raises:
            QueueFull: the request has more tokens than were expected, and they do not fit.
        """
        demand = ticket.demand_with(works, whole=whole)
        if ticket not in self._tickets:
            ticket.extend(works, demand, whole=whole)
            self.admit(ticket)
            return
        more, lane = demand.tokens - ticket.demand.tokens, ticket.demand.bulk
        if more > 0:
            self._check_fit(ticket.tokens_waiting + more, self.tokens_waiting - ticket.tokens_waiting)
        ticket.extend(works, demand, whole=whole)
        self.tokens_waiting += more
        ticket.slice_left = min(ticket.slice_left, ticket.tokens_waiting)
        if ticket.over:
            self._forget([ticket])
        elif demand.bulk != lane or ticket.slice_left <= 0:
            self._enter_lane(ticket)

    def _check_fit(self, tokens: int, others: int) -> None:
        excess = self._excess(tokens, others)
        if excess:
            seconds = self.seconds_of(excess)
            raise QueueFull(
                f"{others} tokens are waiting and {tokens} more do not fit "
                f"(max_queue_tokens {self._max_tokens}); try again in {max(1.0, seconds):.0f} s",
                retry_after_s=seconds,
            )

    def _enter_lane(self, ticket: T) -> None:
        """Begin the first slice of a ticket in the lane of its size."""
        ticket.start_slice(self._handed_out)
        if ticket.demand.bulk and not any(
            other.demand.bulk for other in self._tickets if other is not ticket
        ):
            self._set_bulk_due(ticket.model)

    def expect(self, demand: Demand) -> Place:
        """Count an admitted request in the estimates, until `forget`."""
        place = Place(demand)
        place.start_slice(self._handed_out)
        self._expected.add(place)
        return place

    def forget(self, place: Place) -> None:
        """End `expect`: the request has a job, or has ended."""
        self._expected.discard(place)

    def excess(self, tokens: int) -> int:
        """Return how many waiting tokens must go before a job of `tokens` fits; 0: it fits now."""
        return self._excess(tokens, self.tokens_waiting)

    def _excess(self, tokens: int, others: int) -> int:
        return max(0, min(others + tokens - self._max_tokens, others))

    def seconds_waiting(self) -> float:
        """Estimate the device time of all work: of the jobs, and of the requests that have no jobs yet."""
        places: list[Place] = [*self._tickets, *self._expected]
        return sum(place.tokens_waiting / place.model.tokens_per_second for place in places) / self._threads

    def seconds_of(self, tokens: int) -> float:
        """Estimate the device time of the next `tokens` tokens, at the measured rate of each model."""
        whole = sum(ticket.tokens_waiting / ticket.model.tokens_per_second for ticket in self._tickets)
        return whole * tokens / max(1, self.tokens_waiting) / self._threads

    def seconds_until_done(self, demand: Demand) -> float:
        """Estimate the device time until a job that arrives now is finished, its own time included."""
        first = demand.slice_of(demand.tokens)
        due, rounds = self._handed_out + demand.distance(first), math.ceil(demand.tokens / max(1, first)) - 1
        seconds, bulk = 0.0, 0.0
        places: list[Place] = [*self._tickets, *self._expected]
        for place in places:
            rate, waiting = place.model.tokens_per_second, place.tokens_waiting
            if place.demand.bulk and not demand.bulk:
                bulk += waiting / rate
            elif demand.bulk and not place.demand.bulk:
                seconds += waiting / rate
            else:
                ahead = place.slice_left if demand.bulk or place.due <= due else 0
                # between two slices of this job, every other job gets one
                seconds += (ahead + min(waiting - ahead, rounds * place.demand.slice_of(waiting))) / rate
        batches, batch_s = (
            rounds + (self._bulk_due <= due),
            demand.model.batch_tokens / demand.model.tokens_per_second,
        )
        before = seconds + min(bulk, batches * batch_s)
        # a batch is not divided, so its job takes at least as long
        own = min(demand.seconds, max(batch_s, demand.seconds / self._threads))
        return own + before / self._threads

    def _set_bulk_due(self, model: Model) -> None:
        self._bulk_due = self._handed_out + SLICE_BATCHES * model.batch_tokens

    def _order(self, ticket: T) -> tuple[int, int]:
        return (self._bulk_due, ticket.due) if ticket.demand.bulk else (ticket.due, 0)

    def drop(self, ticket: T) -> None:
        """Forget the rest of a job whose caller has gone or whose work has failed."""
        ticket.closed = True
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self.tokens_waiting -= ticket.tokens_waiting

    def clear(self) -> list[T]:
        """Empty the queue; return the tickets that were waiting."""
        waiting, self._tickets = self._tickets, []
        self.tokens_waiting = 0
        return waiting

    def take(self) -> Batch[T] | None:
        """Return the next batch, or None when there is no work at hand. Never waits for more work."""
        by_due = sorted((ticket for ticket in self._tickets if ticket.ready), key=self._order)
        if not by_due:
            return None
        model = by_due[0].model
        works: list[Work] = []
        taken: list[T] = []
        room = model.batch_tokens
        for ticket in by_due:
            if ticket.model is model:
                part = _take_from(ticket, room, at_least_one=not works, query_apart=self._threads > 1)
                if part:
                    ticket.awaited = _awaited(ticket, part) if self._threads > 1 else None
                    works += part
                    taken.append(ticket)
                    room -= tokens_of(part)
            if room <= 0:
                break
        handed = tokens_of(works)
        self._handed_out += handed
        self.tokens_waiting -= handed
        self._forget(ticket for ticket in taken if ticket.over)
        if any(ticket.demand.bulk for ticket in taken):
            self._set_bulk_due(model)
        for ticket in taken:
            if ticket.slice_left <= 0:
                ticket.start_slice(self._handed_out)
        return Batch(works, taken)

    def release(self, batch: Batch[T]) -> None:
        """Let the works go on that needed what this batch has computed."""
        for ticket in batch.tickets:
            if ticket.awaited in batch.works:
                ticket.awaited = None

    def _forget(self, over: Iterable[T]) -> None:
        for ticket in over:
            # the tokens of a shared prefix wait with the ticket, but are no part of any work
            self.tokens_waiting -= ticket.tokens_waiting
            self._tickets.remove(ticket)


def tokens_of(works: Iterable[Work]) -> int:
    """Return the tokens that pass through the model, without shared prefixes."""
    return sum(len(work.tokens) for work in works)


def _awaited(ticket: Ticket, part: list[Work]) -> Work | None:
    """Return the work of `part` without which the next one of the ticket cannot run."""
    job = part[-1].job
    if not ticket.exhausted and ticket.work[ticket.next_work].job is not job:
        return None
    return next((work for work in part if work.leads and work.job is job), None)


def _take_from(ticket: Ticket, room: int, *, at_least_one: bool, query_apart: bool) -> list[Work]:
    """Take the next work of a ticket, as much as fits into `room` tokens.

    With `query_apart` a query ends it if the ticket is one job with more work than a batch.
    """
    large = len(ticket.jobs) == 1 and ticket.tokens_waiting > ticket.model.batch_tokens
    first, work = ticket.next_work, ticket.work
    while not ticket.exhausted:
        size = len(work[ticket.next_work].tokens)
        if size > room and not (at_least_one and ticket.next_work == first):
            break
        room -= size
        ticket.tokens_waiting -= size
        ticket.slice_left -= size
        ticket.next_work += 1
        if query_apart and large and work[ticket.next_work - 1].index == QUERY:
            break
    return work[first : ticket.next_work]
