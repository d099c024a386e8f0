"""The watch over calls to replicas that have become silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, ActorUnavailableError

from sie_server.cluster.routing import watch
from sie_server.cluster.routing.watch import OpenCalls

pytestmark = pytest.mark.unit


class Sent:
    """A call that notes whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled, self._callbacks = False, []  # type: bool, list[Callable[[Any], None]]

    def cancel(self) -> None:
        self.cancelled = True
        self.end()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


class Replica:
    """Answers with a sign of life, not at all, or with an error."""

    def __init__(self) -> None:
        self.answer: Exception | bool = True

    async def ask(self) -> int:
        if isinstance(self.answer, Exception):
            raise self.answer
        if not self.answer:
            await asyncio.Event().wait()
        return 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(watch, "PERIOD_S", 0.01)
    return now


def test_calls_to_a_silent_replica_are_given_up_and_it_may_return(clock: list[float]) -> None:
    async def run() -> None:
        replica, call = Replica(), Sent()
        calls = OpenCalls("r", replica.ask, lambda: clock[0])
        calls.add(call)
        replica.answer = False
        clock[0] += watch.SILENT_S - 1
        await calls.check()
        assert not call.cancelled and not calls.lost
        clock[0] += 1
        await calls.check()
        assert call.cancelled and calls.lost and not calls
        replica.answer = True
        await calls.check()
        assert not calls.lost

    asyncio.run(run())


def test_a_call_that_takes_long_on_a_live_replica_goes_on(clock: list[float]) -> None:
    async def run() -> None:
        replica, call = Replica(), Sent()
        calls = OpenCalls("r", replica.ask, lambda: clock[0])
        calls.add(call)
        for _ in range(5):
            clock[0] += watch.SILENT_S
            await calls.check()
        assert not call.cancelled and len(calls) == 1
        call.end()
        assert not calls

    asyncio.run(run())


def test_silence_counts_from_the_first_open_call(clock: list[float]) -> None:
    async def run() -> None:
        replica, call = Replica(), Sent()
        calls = OpenCalls("r", replica.ask, lambda: clock[0])
        clock[0] += 1000  # nothing was open, so nothing was asked
        calls.add(call)
        replica.answer = ActorUnavailableError("no connection", None)
        await calls.check()
        assert not call.cancelled
        clock[0] += watch.SILENT_S
        await calls.check()
        assert call.cancelled

    asyncio.run(run())


def test_calls_to_a_dead_replica_are_given_up_at_once(clock: list[float]) -> None:
    async def run() -> None:
        replica, call = Replica(), Sent()
        calls = OpenCalls("r", replica.ask, lambda: clock[0])
        calls.add(call)
        replica.answer = ActorDiedError()
        await calls.check()
        assert call.cancelled and calls.lost

    asyncio.run(run())
