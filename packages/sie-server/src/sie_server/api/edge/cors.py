"""Which web pages may call: the `Access-Control-*` headers of the fetch standard, for the origins in the configuration.

Without any, a browser lets only pages of the server's own origin read its answers. The admin routes never take part:
no page of another origin gets at them.
"""

from __future__ import annotations

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_server.api.edge.gate import ADMIN
from sie_server.config import ConfigError

ORIGIN = re.compile(r"https?://[^/\s*?#@]+")
ASKED = [
    "Authorization",
    "Content-Type",
    "X-SIE-Machine-Profile",
    "X-SIE-Pool",
    "X-SIE-Request-ID",
    "X-SIE-SDK-Version",
]
SHOWN = [
    "Retry-After",
    "X-Inference-Time",
    "X-Queue-Time",
    "X-SIE-Error-Code",
    "X-SIE-Request-ID",
    "X-SIE-Server-Version",
    "X-SIE-Warnings",
    "X-Tokenization-Time",
    "X-Total-Time",
]


class Cors:
    """Outside of the gate: a browser asks for permission (a preflight) without the key."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._closed = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=ASKED,
            expose_headers=SHOWN,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_admin = scope["type"] == "http" and scope["path"].startswith(ADMIN)
        await (self._closed if is_admin else self._shared)(scope, receive, send)


def check_origins(origins: tuple[str, ...]) -> None:
    """Raises ConfigError for what no browser would ever send as its origin, so that it does not fail in silence."""
    for origin in origins:
        if origin != "*" and (not ORIGIN.fullmatch(origin) or origin != origin.lower()):
            raise ConfigError(
                f"cors_origins: {origin!r} is not an origin; write it as a browser sends it, https://app.example.com "
                "or http://localhost:3000, in lower case without a path or a final slash, or * for every page"
            )
