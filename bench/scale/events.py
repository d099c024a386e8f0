"""A discrete-event loop, and a station of servers that handle one customer at a time in order of arrival."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Loop:
    """Runs actions in order of their simulated time; equal times in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self._actions: list[tuple[float, int, Action]] = []
        self._numbers = count()

    def after(self, seconds: float, action: Action) -> None:
        heapq.heappush(self._actions, (self.now + seconds, next(self._numbers), action))

    def run(self) -> None:
        """Run until no action is left."""
        while self._actions:
            self.now, _, action = heapq.heappop(self._actions)
            action()


class Station:
    """`servers` equal servers with one queue: the CPU cores of the ingress processes."""

    def __init__(self, loop: Loop, servers: int) -> None:
        self._loop, self._idle = loop, servers
        self._waiting: deque[tuple[float, Action]] = deque()

    def serve(self, seconds: float, done: Action) -> None:
        """Occupy the next idle server for `seconds`, then call `done`."""
        self._waiting.append((seconds, done))
        self._start()

    def _start(self) -> None:
        while self._idle and self._waiting:
            seconds, done = self._waiting.popleft()
            self._idle -= 1
            self._loop.after(seconds, lambda done=done: self._end(done))  # type: ignore[misc]

    def _end(self, done: Action) -> None:
        self._idle += 1
        self._start()
        done()
