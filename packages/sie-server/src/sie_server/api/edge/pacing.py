"""Refusals on a connection that did not wait: they are delayed, so that a loop without a pause costs little.

The first refusal on a connection is answered at once. If the client sends the next request before the time in
`Retry-After` is over, and that request is refused too, its answer waits for the rest of the time. A request that can be
accepted is never delayed.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request

MOST_S = 1.0  # of delay


class Pace:
    """The time until which the client of one connection was told to wait."""

    def __init__(self) -> None:
        self._until = 0.0

    def delay_s(self, now: float, retry_after_s: float) -> float:
        """Return how long a refusal is delayed, and note its own Retry-After."""
        delay = min(MOST_S, max(0.0, self._until - now))
        self._until = now + delay + retry_after_s
        return delay


async def delay_refusal(request: Request, retry_after_s: float) -> None:
    """Wait before a refusal if the client of the connection has not waited."""
    exchange = getattr(request.state, "exchange", None)  # absent if the app runs without the server
    if exchange is None:
        return
    delay = exchange.pace.delay_s(asyncio.get_running_loop().time(), retry_after_s)
    if delay:
        exchange.rest()
        await asyncio.sleep(delay)
