"""A model replica: today's service in a process of Ray, with our batcher and our memory budget."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from ray import serve

from sie_server.cluster.log import log_to_ray
from sie_server.cluster.outcomes import Context, Outcome, outcome_of
from sie_server.cluster.replica.operators import ReplicaOperators
from sie_server.cluster.state import DesiredState
from sie_server.config import ServerConfig
from sie_server.errors import InferenceError, SIEError, out_of_memory
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.service import Service

log = logging.getLogger("sie_server.cluster")
SWITCH_S = 0.0005  # as in api.server
POLL_S = 2.0
UNUSED_S = 30.0  # after which the memory of a model counts as room for another one
SMOOTHING = 0.1  # weight of the newest request in the mean device time of a request
# methods of the service that an ingress replica may call: with a request's timing, and without
TIMED = frozenset({"score_each", "score_part", "inspect", "encode", "with_tokenizer"})
UNTIMED = frozenset({"infos", "info", "first_with", "pooling", "metrics_text"})


class ModelReplica:
    """One `Service`. Its methods return an `Outcome`; they raise no errors of the service."""

    async def __init__(self, config: ServerConfig) -> None:  # type: ignore[misc]
        sys.setswitchinterval(SWITCH_S)
        log_to_ray(config)
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._service = Service(config)
        self._open, self._request_s = 0, 0.0
        self._busy = BusyShare(self._service.busy_seconds)
        desired = DesiredState(config.models_dir) if config.models_dir else None
        self._operators = ReplicaOperators(self._service, desired, config.models_dir_poll_s or POLL_S)
        await self._operators.start()
        await self._service.preload()
        await self._operators.follow()

    def __del__(self) -> None:
        """Called by Serve when the replica ends."""
        if operators := getattr(self, "_operators", None):
            operators.stop()

    async def ping(self) -> str:
        """Return the name of this replica, which is ready."""
        return self._name

    async def operate(self, method: str, *args: Any) -> Outcome:
        """Call a method of `ReplicaOperators`: `run`, `prepare` or `finish`."""
        work = getattr(self._operators, method)(*args)
        return await outcome_of(self._name, RequestTiming(), _known(work), self._service.sources)

    async def call(
        self,
        method: str,
        context: Context,
        *args: Any,
        avoid: tuple[str, ...] = (),
        prefer: str = "",
        **options: Any,
    ) -> Outcome:
        """Call a method of the service. `avoid` and `prefer` are for the router."""
        if method in UNTIMED:
            work = getattr(self._service, method)(*args, **options)
            return await outcome_of(self._name, RequestTiming(), _known(work), self._service.sources)
        if method not in TIMED:
            raise ValueError(f"a replica has no method {method!r}")
        timing = context.timing()
        work = getattr(self._service, method)(*args, timing, **options)
        self._open += 1
        try:
            return await outcome_of(self._name, timing, _known(work), self._service.sources)
        finally:
            self._open -= 1
            self._request_s += SMOOTHING * (timing.inference_ms / 1e3 - self._request_s)

    async def check_health(self) -> None:
        """Raise if only a restart helps. Serve calls this every few seconds."""
        if problem := self._service.unready():
            raise RuntimeError(problem)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return what the router has to know of this replica. Serve calls this every second."""
        infos = await self._service.infos()
        return {
            "loaded": {info.name: info.memory_bytes for info in infos if info.loaded},
            "loading": [info.name for info in infos if info.state == "loading"],
            "room": self._service.room(UNUSED_S),
            "unused_s": self._service.longest_unused_s(),
            "queued_s": self._service.queued_seconds(),
            "open": self._open,
            "request_s": self._request_s,
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the number of replicas follows (`cluster.scaling`). Serve calls this every few seconds."""
        return {"queued_s": self._service.queued_seconds(), "busy": self._busy.since_last()}


class BusyShare:
    """The share of time in which the device has run batches."""

    def __init__(
        self, busy_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._busy_seconds, self._clock = busy_seconds, clock
        self._last = clock(), busy_seconds()

    def since_last(self) -> float:
        """Return the share since the last call."""
        now, busy = self._clock(), self._busy_seconds()
        (then, before), self._last = self._last, (now, busy)
        return min(1.0, (busy - before) / (now - then)) if now > then else 0.0


async def _known(work: Any) -> Any:
    """Await `work`. A bug of one request must not look like a dead replica, so other errors become ours."""
    try:
        return await work
    except SIEError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        log.error("unexpected error", exc_info=error)
        raise InferenceError("internal error; see the log of the replica") from None
