"""The time that a client may take for a head, a body or a response. Pure: the caller gives the time."""

from __future__ import annotations

import math

BYTES_PER_S = 64 * 1024  # a transfer gets one more second for each 64 KiB that have arrived
PROGRESS = 16 * 1024  # fewer bytes are no progress, so that single bytes do not make a client look active


class Transfer:
    """One direction of one connection while the server waits for its client."""

    def __init__(self, base_s: float, bytes_per_s: float = BYTES_PER_S) -> None:
        self._base_s, self._bytes_per_s = base_s, bytes_per_s
        self._since: float | None = None
        self._progress_at = 0.0
        self._moved = self._progress = 0

    @property
    def active(self) -> bool:
        """Whether the server waits for the client."""
        return self._since is not None

    def start(self, now: float) -> None:
        """Begin a transfer, unless one is active."""
        if self._since is None:
            self._since = self._progress_at = now
            self._moved = self._progress = 0

    def stop(self) -> None:
        self._since = None

    def moved(self, size: int, now: float) -> None:
        """Count bytes that the client has sent or read."""
        self._moved += size
        if self._moved - self._progress >= PROGRESS:
            self._progress, self._progress_at = self._moved, now

    def wait(self, seconds: float) -> None:
        """Extend the time: for these seconds the client waited for the server."""
        if self._since is not None:
            self._since += seconds
            self._progress_at += seconds

    def overdue(self, now: float) -> bool:
        """Whether the time is over."""
        return self._since is not None and now > self._since + self._base_s + self._moved / self._bytes_per_s

    def stalled_s(self, now: float) -> float:
        """Return the seconds without progress; 0 if no transfer is active."""
        return 0.0 if self._since is None else now - self._progress_at


def head_deadline(seconds: float) -> Transfer:
    """Return a transfer whose time does not grow with its bytes."""
    return Transfer(seconds, math.inf)
