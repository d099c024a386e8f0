"""How long callers wait before they hang up, learned from those that do. Pure policy; the clock is an argument.

Under overload, a queue that is longer than the callers' patience serves only callers that are about to leave. So when
callers hang up while they wait, the server shortens the wait that it accepts, and refuses further requests instead.

Few callers must not shorten the wait of all others. The limit follows only if a considerable share of the recent work
belonged to callers that left, and a caller counts only if it waited for much longer than its own request takes.
Callers that leave at one moment after different waits did not lose their patience: a proxy or a process with many
connections has ended. They count as one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

WINDOW_S = 3.0  # of outcomes that count
MOST = 1024  # outcomes that are kept
FEWEST = 5  # callers that have left, before the limit changes
SHARE = 1 / 3  # of the work in the window
MOMENT_S = 0.05  # in which the connections of a process that ends are lost
SIMILAR = 1.25  # ratio of waits that may come from one timeout
SERVICE_TIMES = (
    2.0  # a caller that leaves earlier, in device times of its own request, says nothing about waiting
)
MARGIN = (
    1 / 4
)  # of the patience is accepted as a wait; the rest is for the running batch and the request's own one
DECREASE = 0.7  # of the limit, if callers that were admitted under it leave as well
HOLD_S = 5.0  # the limit stays, then grows
GROWTH = 1.03  # per second, to find out whether callers have become more patient
CALM_S = 2.0  # without refusals, or twice the limit if that is longer: the overload is over


class Outcome(NamedTuple):
    """The end of a request that was admitted."""

    at: float
    tokens: int
    waited_s: float | None  # None: answered


def decisions(gone: Sequence[tuple[float, float]]) -> int:
    """Count the decisions to leave among departures (time, wait), which are in order of time.

    Departures at the last moment count as one, because more may follow.
    """
    moments: list[list[float]] = []
    start = -math.inf
    for at, waited_s in gone:
        if at - start > MOMENT_S:
            moments.append([])
            start = at
        moments[-1].append(waited_s)
    return sum(len(waits) if max(waits) <= SIMILAR * min(waits) else 1 for waits in moments[:-1]) + 1


class Patience:
    """The longest wait that the server accepts, in seconds: `most_s` unless callers leave earlier."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._outcomes: deque[Outcome] = deque(maxlen=MOST)
        self._limit_s = most_s
        self._changed = 0.0  # time of the last change of the limit
        self._refused = 0.0  # time of the last refusal

    def answered(self, tokens: int, now: float) -> None:
        """Note a request that was answered."""
        self._outcomes.append(Outcome(now, tokens, None))

    def left(self, tokens: int, waited_s: float, needed_s: float, least_s: float, now: float) -> None:
        """Note a caller that hung up after `waited_s`; its request needs `needed_s` of the device.

        The limit never falls below `least_s`, the wait that keeps the device busy.
        """
        if waited_s < SERVICE_TIMES * max(needed_s, least_s):
            return
        self._end_calm(now)
        if now - waited_s < self._changed:
            return  # it was admitted under an earlier limit
        self._outcomes.append(Outcome(now, tokens, waited_s))
        while self._outcomes[0].at < now - WINDOW_S:
            self._outcomes.popleft()
        gone = [(outcome.at, outcome.waited_s) for outcome in self._outcomes if outcome.waited_s is not None]
        waits = sorted(waited for _, waited in gone)
        lost = sum(outcome.tokens for outcome in self._outcomes if outcome.waited_s is not None)
        if decisions(gone) >= FEWEST and lost > SHARE * sum(outcome.tokens for outcome in self._outcomes):
            limit = min(MARGIN * waits[len(waits) // 4], DECREASE * self.limit_s(now))
            self._limit_s, self._changed, self._refused = max(least_s, limit), now, now
            self._outcomes.clear()

    def refused(self, now: float) -> None:
        """Note that a request was refused: the overload goes on."""
        self._end_calm(now)
        self._refused = now

    def _end_calm(self, now: float) -> None:
        """Forget the limit of an earlier overload."""
        if self._calm(now):
            self._limit_s = self._most_s

    def _calm(self, now: float) -> bool:
        return now - self._refused > max(CALM_S, 2 * self._limit_s)

    def limit_s(self, now: float) -> float:
        """Return the longest wait that is accepted now."""
        if self._calm(now):
            return self._most_s
        grown: float = self._limit_s * GROWTH ** min(1000.0, max(0.0, now - self._changed - HOLD_S))
        return min(self._most_s, grown)
