"""Calls of a pool that are repeated."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

pytest.importorskip("ray")

from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import RequestCancelledError

from sie_server.cluster.ingress.metrics import ClusterMetrics
from sie_server.cluster.ingress.pool import RERUNS, Pool
from sie_server.cluster.outcomes import Outcome
from sie_server.config import PoolConfig
from sie_server.errors import ModelLoading
from sie_server.serving.metrics import RequestTiming

pytestmark = pytest.mark.unit
ACTOR = bytes(16)


class Response:
    """The return value of a handle: a result, an error, or None for a call that has no answer."""

    def __init__(self, result: Outcome | Exception | None) -> None:
        self.result, self.cancelled = result, False

    def __await__(self) -> Generator[Any, None, Outcome]:
        if isinstance(self.result, asyncio.CancelledError | Exception):
            raise self.result
        if self.result is None:
            try:
                yield from asyncio.Event().wait().__await__()
            except asyncio.CancelledError:
                raise RequestCancelledError from None  # as Serve does
        assert isinstance(self.result, Outcome)
        return self.result

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle of Serve that returns the responses one after the other, and notes the actors that the calls avoid."""

    def __init__(self, *results: Any) -> None:
        self.responses = [Response(result) for result in results]
        self._left, self.avoided = iter(self.responses), []  # type: Any, list[tuple[str, ...]]

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, *_: Any, avoid: tuple[str, ...], **__: Any) -> Response:
        self.avoided.append(avoid)
        response: Response = next(self._left)
        return response


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def pool(handle: Handle, registry: CollectorRegistry) -> Pool:
    return Pool("p", PoolConfig(), handle, 5.0, 5.0, ClusterMetrics(registry))  # type: ignore[arg-type]


def reruns(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("sie_reruns_total", {"pool": "p"}) or 0.0


@pytest.mark.parametrize("given_up", [asyncio.CancelledError(), ActorUnavailableError("gone", ACTOR)])
def test_a_call_is_repeated_if_its_replica_is_gone(
    given_up: BaseException, registry: CollectorRegistry
) -> None:
    handle = Handle(given_up, Outcome("second", 7))
    found = asyncio.run(pool(handle, registry).call("m", "infos", RequestTiming()))
    assert (found.replica, found.value, reruns(registry)) == ("second", 7, 1)
    assert handle.avoided[0] == () and len(handle.avoided[1]) == 1


def test_a_call_is_repeated_three_times_at_most(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sie_server.cluster.ingress.pool.PAUSE_S", 0.001)
    handle = Handle(*[ActorUnavailableError("gone", ACTOR)] * 9)
    with pytest.raises(ModelLoading):
        asyncio.run(pool(handle, registry).call("m", "infos", RequestTiming()))
    assert len(handle.avoided) == 1 + RERUNS and reruns(registry) == RERUNS


def test_a_caller_that_leaves_ends_its_call(registry: CollectorRegistry) -> None:
    handle, unseen = Handle(None), list[dict[str, Any]]()

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        call = asyncio.create_task(pool(handle, registry).call("m", "infos", RequestTiming()))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.01)
        gc.collect()  # asyncio reports an error that nothing has read when its task is collected

    asyncio.run(leave())
    assert not unseen
    assert handle.responses[0].cancelled and reruns(registry) == 0


def test_measured_starts_mend_the_expected_one(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, told = [100.0], list[float]()
    handle = Handle(None, Outcome("first", 7), None)
    one = Pool("p", PoolConfig(), handle, 0.01, 20.0, ClusterMetrics(registry), lambda _, s: told.append(s))  # type: ignore[arg-type]

    async def nobody(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr("sie_server.cluster.ingress.pool.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(one, "broadcast", nobody)

    async def starts() -> tuple[float | None, float | None]:
        with pytest.raises(ModelLoading) as before:
            await one.call("m", "infos", RequestTiming())
        now[0] += 5.0
        await one.call("m", "infos", RequestTiming())
        with pytest.raises(ModelLoading) as after:
            await one.call("m", "infos", RequestTiming())
        return before.value.retry_after_s, after.value.retry_after_s

    before, after = asyncio.run(starts())
    assert before == pytest.approx(20, abs=0.1)
    assert told == [pytest.approx(10, abs=0.1)] and after == pytest.approx(10, abs=0.1)
