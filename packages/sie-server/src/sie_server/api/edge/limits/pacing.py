"""Refusals on a connection that did not wait: they are delayed, so that loops without a pause cost little.

Up to `AT_ONCE_PER_S` refusals a second are answered at once. Beyond that, a client that sends its next request before
the time in `Retry-After` is over gets the next refusal only after the rest of that time. A request that can be accepted
is never delayed.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from sie_server.api.edge.limits.bucket import Bucket

AT_ONCE_PER_S = 400.0  # each costs about 0.2 ms of the event loop
MOST_S = 1.0  # of delay


class Allowance(Bucket):
    """The refusals of all connections that may be answered at once: those of one second."""

    def __init__(self) -> None:
        super().__init__(AT_ONCE_PER_S, AT_ONCE_PER_S)

    def take(self, now: float) -> bool:
        """Take one; return False if none is left."""
        if self.left(now) < 1:
            return False
        self.spend(1, now)
        return True


class Pace:
    """The time until which the client of one connection has to wait."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance, self._until = allowance, 0.0

    def delay_s(self, now: float, retry_after_s: float) -> float:
        """Return how long a refusal is delayed, and note its own Retry-After."""
        early = min(MOST_S, max(0.0, self._until - now))
        delay = 0.0 if self._allowance.take(now) else early
        self._until = now + delay + retry_after_s
        return delay


async def delay_refusal(request: Request, retry_after_s: float) -> None:
    """Wait before a refusal if the client of the connection has not waited, and there are many refusals."""
    exchange = getattr(request.state, "exchange", None)  # absent if the app runs without the server
    if exchange is None:
        return
    await rest(request, exchange.pace.delay_s(asyncio.get_running_loop().time(), retry_after_s))


async def rest(request: Request, delay_s: float) -> None:
    """Wait, and let the connection end if another client needs its place."""
    exchange = getattr(request.state, "exchange", None)
    if delay_s and exchange is not None:
        exchange.rest()
        await asyncio.sleep(delay_s)
