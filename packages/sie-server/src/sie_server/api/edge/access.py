"""The access log: one line per request, after its response. It never contains texts, queries, keys or query strings.

Health probes and scrapes are logged at level DEBUG, because they come every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from sie_server.api.edge.paths import HEALTH
from sie_server.errors import cut
from sie_server.logs import FIELDS
from sie_server.serving.metrics import RequestTiming

log = logging.getLogger("sie_server.access")
PROBES = HEALTH | {"/metrics"}


class RouteNames:
    """The routes of one application, by their templates with `{model}`."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        known = [route for route in routes if isinstance(route, Route)]
        self._fixed = {route.path for route in known if not route.param_convertors}
        # every route with parameters has an endpoint of its own
        self._of_endpoint: dict[object, str] = {
            route.endpoint: route.path.replace(":path}", "}") for route in known if route.param_convertors
        }

    def of(self, scope: Mapping[str, Any]) -> str | None:
        """Return the route that a request has reached; None: no route."""
        path: str = scope["path"]
        return path if path in self._fixed else self._of_endpoint.get(scope.get("endpoint"))


class AccessLog:
    """Writes the lines of one application."""

    def __init__(self, names: RouteNames) -> None:
        self._names = names

    def write(self, scope: Mapping[str, Any], status: int, sent: int, timing: RequestTiming) -> None:
        """Log one request; `sent` is the number of bytes of the response's body."""
        path: str = scope["path"]
        level = logging.DEBUG if path in PROBES else logging.INFO
        if not log.isEnabledFor(level):
            return
        route = self._names.of(scope)
        state = scope.get("state", {})
        model = state.get("model") or scope.get("path_params", {}).get("model")
        fields = {
            "method": scope["method"],
            "route": route,
            "path": None if route else cut(path),
            "status": status,
            "ms": round(timing.total_ms, 1),
            "model": cut(model) if model else None,
            "items": timing.items,
            "tokens": timing.tokens,
            "bytes_in": state.get("body_bytes"),
            "bytes_out": sent,
            "request_id": state.get("request_id"),
            "trace_id": state.get("trace_id"),
            "key": state.get("caller"),
        }
        known = {name: value for name, value in fields.items() if value is not None}
        log.log(level, "request", extra={FIELDS: known})
