"""An ingress replica: today's HTTP app over a `RemoteService`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from sie_server.api.app import create_app
from sie_server.cluster.ingress.remote import RemoteService
from sie_server.cluster.log import log_to_ray
from sie_server.config import ServerConfig
from sie_server.serving.backend import Backend

NAME = "ingress"  # of the deployment
DRAIN_POLL_S = 0.05


class Ingress:
    """Serve runs the app that `__serve_build_asgi_app__` returns."""

    def __init__(self, config: ServerConfig, pools: dict[str, DeploymentHandle[Any]]) -> None:
        log_to_ray(config)
        self._config, self._pools = config, pools
        context = serve.get_replica_context()
        self._name, self._application = context.replica_id.unique_id, context.app_name

    def __serve_build_asgi_app__(self) -> Starlette:
        self._app = create_app(self._config, self._open)
        return self._app

    def _open(self, config: ServerConfig, on_death: object) -> Backend:
        siblings = serve.get_deployment_handle(NAME, self._application)
        self._service = RemoteService(config, self._name, self._pools, siblings)
        return self._service

    async def note_start(self, pool: str, seconds: float) -> None:
        """Note how long the first replica of a pool took to start."""
        self._service.pools[pool].note_start(seconds)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and return when the others are finished, at the latest after `seconds`."""
        self._app.state.draining = True
        end = time.monotonic() + seconds
        requests = self._service.metrics.in_flight._value
        while requests.get() and time.monotonic() < end:  # noqa: ASYNC110  the gauge has no event
            await asyncio.sleep(DRAIN_POLL_S)

    async def own_metrics(self) -> tuple[str, bytes]:
        """Return the name of this replica and its metrics."""
        return self._name, self._service.metrics.text()
