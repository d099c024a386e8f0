"""One spelling of every path, before the gate and the router read it; and the route that an unknown path means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

SLASHES = re.compile("//+")
LONGEST = 200  # a longer path gets no suggestion, because the search is not linear
HEALTH = frozenset({"/healthz", "/livez", "/readyz"})  # answered also if all connections are in use


def clean(path: str) -> str:
    """Return the path without doubled slashes and without a trailing one."""
    return SLASHES.sub("/", path).rstrip("/") or "/"


class CleanPath:
    """Outermost middleware. CORS, gate and router all see the clean path, so no spelling avoids a check."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": clean(scope["path"])}
        await self._app(scope, receive, send)


def route_meant(path: str, routes: Sequence[BaseRoute]) -> str | None:
    """Return the route that an unknown path resembles: without its first segments, below /v1, or misspelled."""
    if len(path) > LONGEST:
        return None
    known = [route for route in routes if isinstance(route, Route)]
    parts = path.strip("/").split("/")
    shorter = ["/" + "/".join(parts[i:]) for i in range(1, len(parts))]
    for candidate in (*shorter, f"/v1{path}", *(f"/v1{each}" for each in shorter)):
        for route in known:
            if route.matches({"type": "http", "path": candidate, "method": "GET"})[0] is not Match.NONE:
                return _shown(route)
    fixed = {route.path.lower(): route for route in known if "{" not in route.path}
    close = difflib.get_close_matches(path.lower(), fixed, n=1, cutoff=0.8)
    return _shown(fixed[close[0]]) if close else None


def _shown(route: Route) -> str:
    return route.path.replace(":path}", "}")
