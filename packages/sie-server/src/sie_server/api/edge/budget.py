"""Memory of all requests in flight, counted in bytes as they arrive and not as they are declared.

`api.edge.connections` counts request bodies and unsent responses. A route adds what it makes of a body: `hold`.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from sie_server.errors import InputTooLong, QueueFull

MIB = 2**20
SMALL = (
    MIB  # requests up to this size may use the last eighth of the budget, so that large ones never block them
)


class Budget:
    """Bytes that all requests may hold together."""

    def __init__(self, limit: int, largest: int, relieve: Callable[[], bool] = lambda: False) -> None:
        """`largest` is the largest body. `relieve` frees bytes of a stalled client; False if there is none."""
        self._limit = limit
        self._limit_of_large = max(limit - limit // 8, largest)
        self._relieve = relieve
        self.used = self.total = 0  # bytes: now, and since the start

    @property
    def is_over(self) -> bool:
        """Whether unsent responses exceed the limit."""
        return self.used > self._limit

    def share(self) -> Share:
        """Return an empty share for one request."""
        return Share(self)

    def take(self, held: int, more: int) -> None:
        """Add `more` bytes for a share that holds `held`.

        Raises:
            InputTooLong: the request alone is larger than the budget.
            QueueFull: the bytes do not fit now.
        """
        size = held + more
        limit = self._limit if size <= SMALL else self._limit_of_large
        if size > limit:
            raise InputTooLong(
                f"the request needs more than {limit // MIB} MiB of memory; send fewer items per request or raise "
                "the server's max_bodies_mb"
            )
        while self.used + more > limit:
            if not self._relieve():
                raise QueueFull(
                    "the bodies of other requests use the memory for bodies (max_bodies_mb); try again",
                    retry_after_s=1,
                )
        self.used += more
        self.total += more


class Share:
    """The bytes that one request holds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def hold(self, size: int) -> None:
        """Add bytes.

        Raises:
            InputTooLong, QueueFull: they do not fit (`Budget.take`).
        """
        self._budget.take(self.held, size)
        self.held += size

    def set(self, size: int) -> None:
        """Hold exactly `size` bytes, also beyond the limit. For memory that is in use in any case."""
        self._budget.used += size - self.held
        self.held = size

    def release(self) -> None:
        """Give all bytes back."""
        self.set(0)


def hold(request: Request, size: int) -> None:
    """Count `size` more bytes for a request until its end. Call it on the event loop, before the memory is allocated.

    Raises:
        InputTooLong, QueueFull: the bytes do not fit (`Budget.take`).
    """
    exchange = getattr(request.state, "exchange", None)  # absent if the app runs without the server
    if exchange is not None:
        exchange.share.hold(size)
