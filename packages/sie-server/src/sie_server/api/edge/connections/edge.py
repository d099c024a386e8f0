"""What all connections share: the budget, the seats, and the sweep that looks at every connection four times a second.

The sweep replaces timers: the state of a connection decides what is overdue, so nothing can forget to set a timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sie_server.api.edge.budget import MIB, Budget
from sie_server.api.edge.connections.heap import HeapTrim, trim
from sie_server.api.edge.connections.seats import Seats, Throttle, raise_open_files
from sie_server.api.edge.limits.pacing import Allowance
from sie_server.config import ConfigError, ServerConfig
from sie_server.errors import SIEError
from sie_server.room import room_for_threads

log = logging.getLogger("sie_server.api")
SPARE = 64  # connections beyond max_connections, for health routes
SWEEP_S = 0.25
STALLED_S = 1.0  # after this time without progress, a connection may be ended if others need what it holds


class Connection(Protocol):
    """The part of a connection (`EdgeProtocol`) that the sweep uses."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    @property
    def held(self) -> int:
        """The bytes that this connection holds of the budget."""

    def sweep(self, now: float, seconds: float) -> None:
        """End what is overdue; `seconds` have passed since the last sweep."""

    def stalled_s(self, now: float) -> float:
        """Return how long the client of a busy connection has made no progress."""

    def give_way(self) -> None:
        """End this connection because others need its place or its memory."""


class Edge:
    """The limits of one server and the connections that they apply to."""

    def __init__(self, config: ServerConfig, on_error: Callable[[SIEError], None]) -> None:
        """Raise the limit of open files if necessary.

        `on_error` is called with each error that a connection answers, because no application has the request.

        Raises:
            ConfigError: `max_bodies_mb` is smaller than `max_body_mb`.
        """
        if config.max_bodies_mb < config.max_body_mb:
            raise ConfigError(
                f"max_bodies_mb {config.max_bodies_mb} is smaller than max_body_mb {config.max_body_mb}, so the "
                "largest body could never be read; raise max_bodies_mb"
            )
        self.config, self.on_error = config, on_error
        self.max_body = config.max_body_mb * MIB
        self.refusals = Allowance()
        self.budget = Budget(config.max_bodies_mb * MIB, self.max_body, self._relieve)
        self._heap = HeapTrim(self.budget)
        size = raise_open_files(config.max_connections, SPARE)
        self.seats: Seats[Connection] = Seats(size, SPARE, self._end, self._stalled)
        self._connections: set[Connection] = set()
        self._candidates: list[Connection] = []  # stalled at the last sweep, the longest stall last
        self._full = Throttle()
        self._timer: asyncio.TimerHandle | None = None
        self._swept_at = 0.0

    def enter(self, connection: Connection) -> None:
        """Add a new connection, perhaps in place of another one."""
        self._connections.add(connection)
        if self._timer is None:
            self._swept_at = connection.loop.time()
            self._timer = connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)
        if self.seats.enter(connection) and (events := self._full.due(connection.loop.time())):
            log.warning(
                "all connections are in use (max_connections %d); new clients since the last such line: %d",
                self.config.max_connections,
                events,
            )

    def leave(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
        self._connections.discard(connection)
        self.seats.leave(connection)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(
            SWEEP_S, self._sweep, loop
        )  # first, so that an error below does not end the sweeps
        now = loop.time()
        seconds, self._swept_at = now - self._swept_at, now
        for connection in list(self._connections):
            try:
                connection.sweep(now, seconds)
            except Exception:  # the sweep of all others must go on
                log.exception("a connection is closed because of an unexpected error")
                connection.transport.abort()
        stalled = [(each.stalled_s(now), id(each), each) for each in self._connections]
        self._candidates = [each for seconds, _, each in sorted(stalled) if seconds >= STALLED_S]
        while self.budget.is_over and self._relieve():
            pass  # responses are counted after they have been written
        if self._heap.is_due(now) and room_for_threads(1):
            loop.run_in_executor(None, trim)
        if not (self._connections or self.budget.used or self._heap.is_pending):
            self._timer.cancel()
            self._timer = None

    def _stalled(self) -> Connection | None:
        while self._candidates:
            connection = self._candidates.pop()
            if connection in self._connections and connection.stalled_s(connection.loop.time()) >= STALLED_S:
                return connection
        return None

    def _relieve(self) -> bool:
        while (connection := self._stalled()) is not None:
            if connection.held:
                self._end(connection)
                return True
        return False

    def _end(self, connection: Connection) -> None:
        connection.give_way()
