"""Calls to the replicas of one pool, repeated when a replica dies."""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from sie_server.cluster.ingress.metrics import ClusterMetrics
from sie_server.cluster.outcomes import Context, Outcome
from sie_server.cluster.routing.order import idle
from sie_server.config import PoolConfig
from sie_server.errors import InferenceError, ModelLoading, QueueFull
from sie_server.serving.metrics import RequestTiming

RERUNS = 3  # of one call
PAUSE_S = 0.1  # before the first rerun; doubled for each further one
BROADCAST_S = 5.0
# Serve would search functions and classes of __main__ in all arguments, for the same bytes in four times the time
PICKLE = {"request_serialization": "pickle", "response_serialization": "pickle"}


class Pool:
    """The replicas of one deployment."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        handle: DeploymentHandle[Any],
        wait_s: float,
        start_s: float,
        metrics: ClusterMetrics,
        on_start: Callable[[str, float], None] = lambda pool, seconds: None,
    ) -> None:
        """`wait_s` is how long a call waits for the first replica, `start_s` how long one is expected to start.

        `on_start` is called with the name and the measured seconds of a start.
        """
        self.name, self.config = name, config
        self._handle, self._wait_s, self.metrics = handle, wait_s, metrics
        self._empty_since: float | None = None  # when a call found no replica
        self._start_s, self._on_start = start_s, on_start

    async def call(
        self, model: str, method: str, timing: RequestTiming, *args: Any, **options: Any
    ) -> Outcome:
        """Call a method of one replica, and of another one if that replica dies, and charge its costs.

        Raises:
            QueueFull: no replica takes the request, or the deadline is over.
            ModelLoading: the pool has no replica, or it lost every one that was tried.
            SIEError: the error of the replica.
        """
        outcome = await self.ask(model, method, timing, *args, **options)
        outcome.charge(timing)
        return outcome

    async def ask(
        self, model: str, method: str, timing: RequestTiming, *args: Any, **options: Any
    ) -> Outcome:
        """As `call`, without its costs. A call is repeated, because scoring is idempotent."""
        avoid: list[str] = []
        for attempt in range(RERUNS + 1):
            if attempt:
                self.metrics.reruns.labels(self.name).inc()
                await asyncio.sleep(min(PAUSE_S * 2 ** (attempt - 1), _left(timing)))
            handle = self._handle.options(method_name="call", multiplexed_model_id=model, **PICKLE)
            response = _apart(handle.remote, method, Context.of(timing), *args, avoid=tuple(avoid), **options)
            try:
                outcome = await self._result(response)
            except (RayActorError, RequestCancelledError, AioRpcError) as error:
                avoid.append(getattr(error, "actor_id", None) or "")
                continue
            except BackPressureError:
                raise QueueFull(f"all replicas of pool {self.name!r} are busy", retry_after_s=1) from None
            except DeploymentUnavailableError:
                raise self._starting() from None
            except RayTaskError as error:
                raise InferenceError("internal error; see the log of the replica") from error
            self._seen()
            return outcome
        raise self._starting()

    async def _result(self, response: DeploymentResponse[Outcome]) -> Outcome:
        """Await a response. If the caller leaves, the replica stops the work."""
        waiting = asyncio.ensure_future(_awaited(response))
        waiting.add_done_callback(_look)
        try:
            done, _ = await asyncio.wait([waiting], timeout=self._wait_s)
            if not done and not await self.broadcast("ping"):
                self._empty_since = self._empty_since or time.monotonic() - self._wait_s
                raise self._starting()
            return await waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # the caller has left
                raise
            raise RequestCancelledError from None  # by the watch of the router, see `cluster.routing.watch`
        finally:
            if not waiting.done():
                response.cancel()
                waiting.cancel()

    def _seen(self) -> None:
        """Note that the pool has a replica, and how long the first one took to start.

        Starts vary threefold, because Ray may have a process ready. The geometric mean of the start and the estimate
        before it halves the error of the estimate on a logarithmic scale.
        """
        if self._empty_since is not None:
            self.note_start(math.sqrt(self._start_s * max(1.0, time.monotonic() - self._empty_since)))
            self._on_start(self.name, self._start_s)

    def note_start(self, seconds: float) -> None:
        """Expect a first replica to start in `seconds`, as this ingress replica or another one has measured."""
        self._start_s, self._empty_since = seconds, None

    def _starting(self) -> ModelLoading:
        elapsed = time.monotonic() - self._empty_since if self._empty_since else 0.0
        left = max(1.0, self._start_s - elapsed)
        return ModelLoading(
            f"pool {self.name!r} has no replica; one is starting, try again in about {left:.0f} s",
            retry_after_s=left,
        )

    async def outcomes(self, method: str, *args: Any) -> list[Outcome]:
        """Call a method of the service on all replicas."""
        return await self.broadcast("call", method, Context(), *args)

    async def broadcast(self, method: str, *args: Any, timeout_s: float = BROADCAST_S) -> list[Any]:
        """Return what all replicas return; those that die or do not answer in time are left out."""
        return await answers(self._handle, method, *args, timeout_s=timeout_s)

    def idle(self, model: str) -> list[str]:
        """Return the replicas that have the model and nothing to do."""
        return idle(self.name, model)


async def answers(
    handle: DeploymentHandle[Any], method: str, *args: Any, timeout_s: float = BROADCAST_S
) -> list[Any]:
    """Return what all replicas of a deployment return; those that die or do not answer in time are left out."""
    response = _apart(handle.broadcast, method, *args)
    began = time.monotonic()
    try:
        # `results_async` would lose all results if one replica does not answer
        results = await asyncio.wait_for(response._fetch_replica_results_async(), timeout_s)
    except (TimeoutError, DeploymentUnavailableError):
        return []
    tasks = [asyncio.ensure_future(one.get_async()) for one in results]
    try:
        done, _ = await asyncio.wait(tasks, timeout=max(0.0, timeout_s - (time.monotonic() - began)))
    finally:
        for task in tasks:
            task.cancel()
    return [task.result() for task in tasks if task in done and not task.cancelled() and not task.exception()]


def _apart(send: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Send a call that Serve does not take for a part of the running HTTP request.

    Serve gives all calls of one HTTP request one id, and its router keeps only one call of an id, so of two calls at
    the same time one would never be answered.
    """
    return contextvars.Context().run(send, *args, **options)


async def _awaited(response: Awaitable[Outcome]) -> Outcome:
    return await response


def _look(done: asyncio.Future[Outcome]) -> None:
    """Look at the error of a call that nothing awaits now, or asyncio would log it."""
    if not done.cancelled():
        done.exception()


def _left(timing: RequestTiming) -> float:
    """Return the seconds until the deadline of a request.

    Raises:
        QueueFull: it is over.
    """
    if timing.deadline is None:
        return float(PAUSE_S * 2**RERUNS)
    left = timing.deadline - time.perf_counter()
    if left <= 0:
        raise QueueFull("the deadline of the request is over; try again later", retry_after_s=1)
    return left
