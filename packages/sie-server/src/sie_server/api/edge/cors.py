"""CORS for the configured origins (`cors_origins`).

Without origins, browsers let only pages of the server's own origin read responses. Admin routes never send CORS
headers, so pages of other origins cannot use them.
"""

from __future__ import annotations

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sie_server.api.edge.gate import ADMIN
from sie_server.config import ConfigError

ORIGIN = re.compile(r"https?://[^/\s*?#@]+")
REQUEST_HEADERS = [
    "Authorization",
    "Content-Type",
    "X-SIE-Deadline-Ms",
    "X-SIE-Machine-Profile",
    "X-SIE-Pool",
    "X-SIE-Request-ID",
    "X-SIE-SDK-Version",
]
RESPONSE_HEADERS = [
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
    """Middleware outside the gate, because browsers send preflight requests without the API key."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._closed = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_admin = scope["type"] == "http" and scope["path"].startswith(ADMIN)
        await (self._closed if is_admin else self._shared)(scope, receive, send)


def check_origins(origins: tuple[str, ...]) -> None:
    """Reject values that no browser sends as an origin, because they would never match.

    Raises:
        ConfigError: a value is not an origin.
    """
    for origin in origins:
        if origin != "*" and (not ORIGIN.fullmatch(origin) or origin != origin.lower()):
            raise ConfigError(
                f"cors_origins: {origin!r} is not an origin; use the form https://app.example.com or "
                "http://localhost:3000, in lower case and without a path or trailing slash, or * for all origins"
            )
