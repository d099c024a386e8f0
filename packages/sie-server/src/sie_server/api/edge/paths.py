"""One spelling of every path, before the gate and the router read it; and the route that an unknown path means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_server.config import ConfigError

PREFIX = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+")
SLASHES = re.compile("//+")
LONGEST = 200  # a longer path gets no suggestion, because the search is not linear
# the probes of `api.probes`: without a key, and answered also if all connections are in use
WEAVIATE = "/weaviate"  # the prefix of its dialect
# below the prefixes of dialects, too, because a client appends its probe to the same base URL
HEALTH_JSON = ("/health", "/infinity/health", "/tei/health", "/vllm/health")
NIM_LIVE = ("/v1/health/live", "/nim/v1/health/live")
NIM_READY = ("/v1/health/ready", "/nim/v1/health/ready")
LIVENESS = ("/healthz", "/livez", *NIM_LIVE, "/.well-known/live", f"{WEAVIATE}/.well-known/live")
READINESS = (
    "/readyz",
    *HEALTH_JSON,
    *NIM_READY,
    "/.well-known/ready",
    f"{WEAVIATE}/.well-known/ready",
    "/ping",
)
HEALTH = frozenset({*LIVENESS, *READINESS})


def clean(path: str, prefix: str = "") -> str:
    """Return the path without doubled slashes, without a trailing one, and without the prefix of a proxy."""
    path = SLASHES.sub("/", path).rstrip("/")
    if prefix and f"{path}/".startswith(f"{prefix}/"):
        path = path[len(prefix) :]
    return path or "/"


def check_prefix(prefix: str) -> None:
    """Raise ConfigError if a value of `root_path` is not a path that starts with a slash and does not end with one."""
    if prefix and not PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"root_path: {prefix!r} is not a prefix of paths; use the form /sie, with letters, digits, `.`, `_`, `~`, "
            "`-` and slashes, and without a slash at the end"
        )


class CleanPath:
    """Outermost middleware. CORS, gate and router all see the clean path, so no spelling avoids a check.

    `prefix` is the path below which a proxy serves this server (`root_path`). A path without it is served, too, because
    health checks do not pass the proxy.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": clean(scope["path"], self._prefix)}
        await self._app(scope, receive, send)


def up_to_root(scope: Scope) -> str:
    """Return the address of the server's root relative to a path of one segment, such as /docs, as it was sent.

    Browsers resolve addresses against the path that they sent, and each slash at its end is one level more.
    """
    sent: bytes = scope["raw_path"]
    return "../" * (len(sent) - len(sent.rstrip(b"/"))) or "./"


def is_browsing(scope: Mapping[str, Any]) -> bool:
    """Whether a browser opens the path /, which is the playground then. Other clients request other media types."""
    if scope["path"] != "/" or scope.get("method") not in ("GET", "HEAD"):
        return False
    return any(
        name == b"accept" and b"text/html" in value.lower() for name, value in scope.get("headers", ())
    )


def base_to_root(scope: Scope) -> str:
    """Return the address of the server's root relative to the path /, as it was sent.

    Below a prefix that a proxy keeps, the path may be the prefix without a slash. A browser resolves addresses against
    the part before its last segment.
    """
    sent = scope["raw_path"].decode("ascii", "replace")
    if not sent.endswith("/"):
        return f"{sent.rpartition('/')[2]}/" if PREFIX.fullmatch(sent) else "./"
    return "../" * (len(sent) - len(sent.rstrip("/")) - 1) or "./"


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
