"""The number of connections, and which of them end when all are in use. Pure, except for `raise_open_files`.

A connection without a complete request costs its place as soon as another client needs it. If requests are in progress
on all connections, further clients get spare ones, on which the protocol answers only health routes.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from typing import Generic, TypeVar

from sie_server.config import ConfigError

log = logging.getLogger("sie_server.api")
Connection = TypeVar("Connection")
FEWEST = 16  # connections, or `max_connections` if that is less
OTHER_FILES = 512  # files, sockets and pipes of the process that are not connections of clients
LOG_EVERY_S = 10.0


class Seats(Generic[Connection]):
    """`size` connections for all requests, and `spare` ones for health routes."""

    def __init__(
        self,
        size: int,
        spare: int,
        end: Callable[[Connection], None],
        stalled: Callable[[], Connection | None],
    ) -> None:
        """`end` closes a connection. `stalled` returns a busy one whose client has stalled."""
        self._size, self._spare_size, self._end, self._stalled = size, spare, end, stalled
        self._idle: dict[Connection, None] = {}  # in the order in which they became idle
        self._busy: set[Connection] = set()
        self._spare: dict[Connection, None] = {}  # in the order of their arrival

    def enter(self, connection: Connection) -> bool:
        """Add a new connection; return whether the limit was reached."""
        was_full = self._is_full
        if self._make_room():
            self._idle[connection] = None
            return was_full
        if len(self._spare) >= self._spare_size:
            self._remove(next(iter(self._spare)))
        self._spare[connection] = None
        return True

    def begin(self, connection: Connection) -> bool:
        """Note that a request is in progress; return False if only a health route may be answered."""
        if connection in self._spare:
            if not self._make_room():
                return False
            self._spare.pop(connection, None)
        self._idle.pop(connection, None)
        self._busy.add(connection)
        return True

    def rest(self, connection: Connection) -> None:
        """Note that no request is in progress."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def leave(self, connection: Connection) -> None:
        """Remove a connection. It is fine if it has been removed before."""
        self._idle.pop(connection, None)
        self._spare.pop(connection, None)
        self._busy.discard(connection)

    @property
    def _is_full(self) -> bool:
        return len(self._idle) + len(self._busy) >= self._size

    def _make_room(self) -> bool:
        """Return whether there is a place, after ending a connection that can be spared."""
        if not self._is_full:
            return True
        victim = next(iter(self._idle)) if self._idle else self._stalled()
        if victim is None:
            return False
        self._remove(victim)
        return not self._is_full

    def _remove(self, victim: Connection) -> None:
        self.leave(victim)
        self._end(victim)


class Throttle:
    """Lets one log line through per `LOG_EVERY_S`, with the number of events since the last one."""

    def __init__(self) -> None:
        self._last = -LOG_EVERY_S
        self._events = 0

    def due(self, now: float) -> int:
        """Count an event; return the number to log, or 0."""
        self._events += 1
        if now - self._last < LOG_EVERY_S:
            return 0
        events, self._events, self._last = self._events, 0, now
        return events


def raise_open_files(connections: int, spare: int) -> int:
    """Raise the process's limit of open files for the connections; return how many are possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    needed = connections + spare + OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # macOS refuses values above its own limit
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = min(connections, soft - spare - OTHER_FILES)
    if possible < min(connections, FEWEST):
        raise ConfigError(
            f"the limit of {soft} open files allows fewer than {FEWEST} connections; raise it with ulimit -n {needed}"
        )
    if possible < connections:
        log.warning(
            "the limit of %d open files allows %d connections, not max_connections %d; raise it with ulimit -n %d",
            soft,
            possible,
            connections,
            needed,
        )
    return possible
