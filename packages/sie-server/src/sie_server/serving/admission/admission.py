"""Admission: a request is refused at once if the device cannot answer it in time, before its texts are tokenised.

The estimate goes from characters to tokens, at the ratio of the model's earlier requests, and from tokens to seconds,
at the model's measured rate. Admitted requests count from that moment, also while they are being tokenised.

`Retry-After` is the time until a caller that tries again is likely to be accepted. It has a spread, so that refused
callers do not return together.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sie_server.errors import QueueFull
from sie_server.serving.admission.patience import Patience
from sie_server.serving.device.queue import Demand, Model, Place

FIRST_RATIO = 0.25  # tokens per character before a model has been measured; English text has about 0.22
MEMORY_CHARS = 50_000.0  # after which a text counts a third
PROBE_S = 0.1  # the pace of an eager caller, for which Retry-After is estimated
SPREAD = 0.25  # of Retry-After, in both directions
MEMORY_S = 2.0  # time constant of the share of requests that are accepted
LEAST_BATCHES = 0.25  # a shorter queue would leave the device without work
EARLY_S = 0.01  # an estimate for requests whose body is unread is used for so long


@dataclass(frozen=True)
class Arrival:
    """A request as admission sees it."""

    demand: Demand
    since: float  # when it arrived
    deadline: float | None  # when its answer is no longer wanted


class Early(NamedTuple):
    """The estimates for an unread request of typical size, which many requests share."""

    at: float
    done_s: float
    room_s: float


class Ratio(NamedTuple):
    """Tokens and characters of recent requests."""

    tokens: float
    characters: float


FIRST = Ratio(FIRST_RATIO * MEMORY_CHARS / 10, MEMORY_CHARS / 10)


class TokenRatios:
    """Tokens per character of each model's requests. Recent text counts more, and a request counts by its length."""

    def __init__(self) -> None:
        self._ratios: weakref.WeakKeyDictionary[Model, Ratio] = weakref.WeakKeyDictionary()

    def tokens(self, model: Model, characters: int) -> int:
        """Estimate the tokens of a request."""
        known = self._ratios.get(model, FIRST)
        return math.ceil(characters * known.tokens / known.characters)

    def observe(self, model: Model, characters: int, tokens: int) -> None:
        """Learn from a request that has been tokenised."""
        before = self._ratios.get(model, FIRST)
        kept = math.exp(-characters / MEMORY_CHARS)
        self._ratios[model] = Ratio(before.tokens * kept + tokens, before.characters * kept + characters)


class Acceptance:
    """The recent share of accepted requests; older ones count less."""

    def __init__(self) -> None:
        self._accepted = self._refused = 0.0
        self._at = 0.0

    def note(self, accepted: bool, now: float) -> None:
        """Count a decision."""
        fade = math.exp((self._at - now) / MEMORY_S)
        self._accepted = self._accepted * fade + accepted
        self._refused = self._refused * fade + (not accepted)
        self._at = now

    def seconds_until_accepted(self) -> float:
        """Estimate the median time until a caller that tries every `PROBE_S` is accepted."""
        share = (self._accepted + 0.5) / (self._accepted + self._refused + 1)
        tries = math.log(0.5) / math.log(max(1e-9, 1 - share)) if share < 1 else 1.0
        return PROBE_S * max(1.0, tries)


class Device(Protocol):
    """The estimates of the device and its queue."""

    @property
    def typical_tokens(self) -> int:
        """Tokens of a typical job."""
        ...

    def seconds_until_done(self, demand: Demand) -> float:
        """Estimate the time until a job that arrives now is finished."""
        ...

    def seconds_until_fit(self, demand: Demand) -> float:
        """Estimate the time until the queue has room for a job; 0: it has room now."""
        ...

    def expect(self, demand: Demand) -> Place:
        """Count an admitted request in the estimates, until `forget`."""
        ...

    def forget(self, place: Place) -> None:
        """End `expect`."""
        ...


class Admitted:
    """A request that may wait."""

    def __init__(
        self, arrival: Arrival, characters: int, ratios: TokenRatios, forget: Callable[[], None]
    ) -> None:
        """`forget` ends its place among the requests that have no job yet."""
        self.arrival, self._characters, self._ratios, self.forget = arrival, characters, ratios, forget

    def queued(self, tokens: int) -> None:
        """Note that the request's jobs, which have `tokens` in all, enter the queue."""
        self.forget()
        self._ratios.observe(self.arrival.demand.model, self._characters, tokens)


class Admission:
    """Decides which requests may wait. Used on the event loop only."""

    def __init__(
        self,
        device: Device,
        max_wait_s: float,
        clock: Callable[[], float] = time.perf_counter,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` returns numbers in [0, 1)."""
        self._device, self._clock, self._chance = device, clock, chance
        self.patience, self.ratios, self._acceptance = Patience(max_wait_s), TokenRatios(), Acceptance()
        self._early: Early | None = None

    def check_early(self, model: Model, deadline: float | None) -> None:
        """Refuse a request whose body is still unread, if even a typical one would be answered too late.

        Raises:
            QueueFull
        """
        # at most a batch: large requests must not make small ones look large
        tokens = min(self._device.typical_tokens, model.batch_tokens)
        now, typical = self._clock(), Demand(model, tokens, "interactive")
        if self._early is None or not 0 <= now - self._early.at < EARLY_S:
            device = self._device
            self._early = Early(now, device.seconds_until_done(typical), device.seconds_until_fit(typical))
        # an unread request may be smaller than a typical one, so its own time does not count
        self._check(self._early.done_s, Arrival(typical, now, None), now)
        self._check_room(self._early.room_s, now)
        if deadline is not None and now >= deadline:
            raise self._refusal("the deadline of the request is over", 0.0, now)

    @contextmanager
    def admit(self, arrival: Arrival, characters: int) -> Iterator[Admitted]:
        """Check a request that may read `characters`, and learn from its end.

        Raises:
            QueueFull: the answer would come too late.
        """
        now = self._clock()
        self._check(self._device.seconds_until_done(arrival.demand), arrival, now)
        self._check_room(self._device.seconds_until_fit(arrival.demand), now)
        self._acceptance.note(True, now)
        place = self._device.expect(arrival.demand)
        admitted = Admitted(arrival, characters, self.ratios, lambda: self._device.forget(place))
        try:
            yield admitted
            self.patience.answered(arrival.demand.tokens, self._clock())
        except asyncio.CancelledError:
            self._left(arrival)
            raise
        finally:
            admitted.forget()

    def _check(self, until_done_s: float, arrival: Arrival, now: float) -> None:
        longest = self.patience.limit_s(now)
        wait_s = until_done_s - arrival.demand.seconds
        if wait_s > longest:
            cause = (
                f"the request would wait for about {wait_s:.1f} s and at most {longest:.1f} s are accepted"
            )
            raise self._refusal(cause, wait_s - longest, now)
        if arrival.deadline is not None and (late_s := now + until_done_s - arrival.deadline) > 0:
            needed_ms = 1e3 * (now - arrival.since + until_done_s)
            cause = (
                f"the answer would take about {needed_ms:.0f} ms and the deadline of the request is earlier"
            )
            raise self._refusal(cause, late_s, now)

    def _check_room(self, room_s: float, now: float) -> None:
        if room_s > 0:
            raise self._refusal("max_queue_tokens tokens are waiting", room_s, now)

    def _refusal(self, cause: str, excess_s: float, now: float) -> QueueFull:
        """Return the error for a request that could be accepted in `excess_s`."""
        self.patience.refused(now)
        self._acceptance.note(False, now)
        seconds = excess_s + self._acceptance.seconds_until_accepted()
        spread = 1 + SPREAD * (2 * self._chance() - 1)
        retry_s = max(1, math.floor(seconds * spread + self._chance()))
        return QueueFull(f"{cause}; try again in {retry_s} s", retry_after_s=retry_s)

    def _left(self, arrival: Arrival) -> None:
        """Note a caller that hung up while its request waited."""
        now, demand = self._clock(), arrival.demand
        if arrival.deadline is not None and now >= arrival.deadline:
            return  # the server has ended the wait
        least_s = LEAST_BATCHES * demand.model.batch_tokens / demand.model.tokens_per_second
        self.patience.left(demand.tokens, now - arrival.since, demand.seconds, least_s, now)
