"""CORS for the configured origins (`cors_origins`), as https://fetch.spec.whatwg.org/#http-cors-protocol defines it.

Without origins, browsers let only pages of the server's own origin read responses. Admin routes never send CORS
headers, so pages of other origins cannot use them.
"""

from __future__ import annotations

import re
import uuid

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_server import __version__
from sie_server.api.edge.connections.answers import body_of, headers_of
from sie_server.api.edge.gate import ADMIN
from sie_server.config import ConfigError
from sie_server.errors import InvalidInput, shown

# file:// is the origin of pages in some Android shells
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?|file://")
DEFAULT_PORT = re.compile(r"https://.*:443|http://.*:80")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
MOST_NAMES = 100  # of headers in one preflight
METHODS = ("GET", "HEAD", "POST")
MAX_AGE = b"600"  # seconds for which a browser remembers a preflight
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
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Inference-Time",
    "X-Queue-Time",
    "X-Request-ID",
    "X-SIE-Error-Code",
    "X-SIE-Request-ID",
    "X-SIE-Server-Version",
    "X-SIE-Warnings",
    "X-Tokenization-Time",
    "X-Total-Time",
    "X-Trace-ID",
]
VARY = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")


class Cors:
    """Middleware outside the gate, because browsers send preflight requests without the API key."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._all = "*" in origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(ADMIN):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and scope["method"] == "OPTIONS" and headers.get("access-control-request-method"):
            await self._answer(scope, origin, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, self._shared(origin, send))

    def _allows(self, origin: str) -> bool:
        return self._all or origin in self._origins

    def _answer(self, scope: Scope, origin: str, headers: Headers) -> Response:
        try:
            return self._preflight(origin, headers)
        except InvalidInput as error:
            scope["app"].state.service.metrics.failed(error)
            return _refusal(error)

    def _preflight(self, origin: str, headers: Headers) -> Response:
        """Answer a preflight request. All headers that it requests are allowed; the origin is checked.

        Raises:
            InvalidInput: the page may not send its request.
        """
        method = headers.get("access-control-request-method", "")
        asked = [name.strip() for name in headers.get("access-control-request-headers", "").split(",")]
        names = [name for name in asked if name]
        if not self._allows(origin):
            listed = "cors_origins is empty" if not self._origins else "it is not in cors_origins"
            raise _refused(f"the origin {shown(origin)} may not call this server, because {listed}")
        if method not in METHODS:
            raise _refused(
                f"a page may not send the method {shown(method)}; allowed are {', '.join(METHODS)}"
            )
        if len(names) > MOST_NAMES:
            raise _refused(f"the preflight requests {len(names)} headers; at most {MOST_NAMES} are allowed")
        if wrong := next((name for name in names if not HEADER_NAME.fullmatch(name)), None):
            raise _refused(f"the preflight requests {shown(wrong)}, which is not the name of a header")
        known = {name.lower() for name in REQUEST_HEADERS}
        allowed = [*REQUEST_HEADERS, *dict.fromkeys(name for name in names if name.lower() not in known)]
        answer = Response(status_code=200)
        answer.raw_headers += [
            *self._allowed(origin),
            (b"access-control-allow-methods", ", ".join(METHODS).encode()),
            (b"access-control-allow-headers", ", ".join(allowed).encode()),
            (b"access-control-max-age", MAX_AGE),
            VARY,
        ]
        # a page of the internet that calls a server in a private network
        if headers.get("access-control-request-private-network") == "true":
            answer.raw_headers.append((b"access-control-allow-private-network", b"true"))
        return answer

    def _allowed(self, origin: str) -> list[tuple[bytes, bytes]]:
        return [(b"access-control-allow-origin", b"*" if self._all else origin.encode("latin-1"))]

    def _shared(self, origin: str | None, send: Send) -> Send:
        """Return `send` with the headers that let a page of an allowed origin read the response."""
        more = [] if self._all or not self._origins else [(b"vary", b"Origin")]
        if origin and self._allows(origin):
            shown_headers = ", ".join(RESPONSE_HEADERS).encode()
            more += [*self._allowed(origin), (b"access-control-expose-headers", shown_headers)]

        async def send_shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *more]
            await send(message)

        return send_shared


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"{reason} (docs/security.md#web-pages)")


def _refusal(error: InvalidInput) -> Response:
    """Return the answer to a preflight that allows nothing. Pages cannot read it, but developers can."""
    headers = {**headers_of(error), "X-SIE-Request-ID": uuid.uuid4().hex, "X-SIE-Server-Version": __version__}
    return Response(msgspec.json.encode(body_of(error)), error.status, headers, media_type="application/json")


def check_origins(origins: tuple[str, ...]) -> None:
    """Reject values that no browser sends as an origin, because they would never match, and those that name no site.

    Raises:
        ConfigError: a value is not an origin.
    """
    for origin in origins:
        if origin != "*" and (not ORIGIN.fullmatch(origin) or DEFAULT_PORT.fullmatch(origin)):
            raise ConfigError(f"cors_origins: {origin!r} is not an origin; {_way_out(origin)}")


def _way_out(origin: str) -> str:
    if origin == "null":
        return "browsers send null for files and for every sandboxed frame, so it names no site; * allows all pages"
    if "," in origin:  # only the variable is split at commas
        return "repeat --cors-origins for each origin, or separate them by commas in SIE_CORS_ORIGINS"
    if "*" in origin:
        return "a pattern would also match sites of others; name each origin, or * for all pages"
    if DEFAULT_PORT.fullmatch(origin):
        return f"browsers leave the default port out; use {origin.rpartition(':')[0]}"
    return (
        "use the form https://app.example.com, http://localhost:3000 or app://obsidian.md, in lower case and without a "
        "path or trailing slash, or * for all pages"
    )
