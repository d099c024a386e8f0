"""Calls to replicas that have become silent: on a machine whose link is cut, or in a process that hangs.

Serve replaces such a replica after a minute or two, and gRPC reports nothing, because a connection on which nothing is
sent looks healthy. So each ingress asks every replica that owes it an answer whether it is alive. A replica that
says nothing for `SILENT_S` gets no more calls, and its open calls are cancelled, so that the pool repeats them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ray.exceptions import ActorDiedError, RayError
from ray.serve._private.common import RunningReplicaInfo
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica

log = logging.getLogger("sie_server.cluster")
PERIOD_S = 5.0
SILENT_S = 20.0  # above the longest pause of a live replica, whose Python may be busy for seconds


class Call(Protocol):
    """A call that has been sent."""

    def cancel(self) -> None:
        """Give it up."""

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` when it has ended."""


class OpenCalls:
    """The calls that one replica has not answered. Used on the event loop of the router."""

    def __init__(
        self, name: str, ask: Callable[[], Awaitable[Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`ask` asks the replica for a sign of life."""
        self.name, self._ask, self._clock = name, ask, clock
        self.lost = False
        self._open: dict[Call, float] = {}  # call → when it was sent
        self._heard = self._clock()

    def add(self, call: Call) -> None:
        """Note a call that has been sent."""
        self._open[call] = self._clock()
        call.add_done_callback(lambda _: self._open.pop(call, None))

    def __len__(self) -> int:
        return len(self._open)

    async def check(self) -> None:
        """Ask the replica, and give up its calls if it has died or been silent for too long."""
        try:
            await asyncio.wait_for(self._ask(), PERIOD_S)
        except ActorDiedError:
            self._give_up("has died")
        except (TimeoutError, RayError):
            since = max(self._heard, min(self._open.values(), default=self._clock()))
            if self._clock() - since >= SILENT_S:
                self._give_up(f"has not answered for {SILENT_S:.0f} s")
        else:
            self._heard = self._clock()
            self.lost = False

    def _give_up(self, reason: str) -> None:
        log.warning("replica %s %s; %d of its calls are repeated", self.name, reason, len(self._open))
        self.lost = True
        for call in list(self._open):
            call.cancel()


class WatchedReplica(RunningReplica):  # type: ignore[misc]
    """A replica as the router sees it, with its open calls."""

    def __init__(self, info: RunningReplicaInfo) -> None:
        super().__init__(info)
        self.calls = OpenCalls(self.replica_id.unique_id, lambda: self.get_queue_len(deadline_s=PERIOD_S))

    def try_send_request(self, pr: PendingRequest, with_rejection: bool) -> Any:
        """See `RunningReplica`."""
        call = super().try_send_request(pr, with_rejection)
        self.calls.add(call)
        return call


class Watch:
    """Checks the replicas of one router that have open calls, also those that Serve has removed."""

    def __init__(self) -> None:
        self._watched: list[WatchedReplica] = []

    def add(self, replica: WatchedReplica) -> None:
        """Watch a replica until `keep` leaves it out."""
        self._watched.append(replica)

    async def run(self, current: Callable[[], set[Any]]) -> None:
        """Check again and again. `current` returns the ids of the replicas that Serve knows."""
        while True:
            await asyncio.sleep(PERIOD_S)
            known = current()
            self._watched = [one for one in self._watched if one.replica_id in known or one.calls]
            await asyncio.gather(
                *(one.calls.check() for one in self._watched if one.calls or one.calls.lost),
                return_exceptions=True,
            )
