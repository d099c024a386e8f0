"""Error responses: the body and headers for the application, and whole responses for connections without a request."""

from __future__ import annotations

import http
import math
import uuid
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sie_server import __version__
from sie_server.errors import SIEError, no_memory, out_of_memory


def body_of(error: SIEError) -> dict[str, Any]:
    """Return the body of an error (docs/http-api.md#errors)."""
    detail = {"code": error.code, "message": error.message, **error.details}
    return {"detail": detail, "error": detail, "code": error.code}


def headers_of(error: SIEError) -> dict[str, str]:
    """Return the headers of an error, without those of its exception's class."""
    headers = {"X-SIE-Error-Code": error.code}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return headers


def whole_response(error: SIEError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a response after which the connection closes."""
    body = msgspec.json.encode(body_of(error))
    headers = {
        **{name.decode(): value.decode() for name, value in default_headers},
        **headers_of(error),
        "content-length": str(len(body)),
        "content-type": "application/json",
        "connection": "close",
        "X-SIE-Request-ID": uuid.uuid4().hex,
        "X-SIE-Server-Version": __version__,
    }
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    lines += [f"{name.lower()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _prepared(error: SIEError) -> Response:
    headers = headers_of(error) | {"X-SIE-Server-Version": __version__}
    return Response(msgspec.json.encode(body_of(error)), error.status, headers, media_type="application/json")


_NO_MEMORY, _INTERNAL = _prepared(no_memory()), _prepared(SIEError("internal error; see the server's log"))


async def last_resort(request: Request, error: Exception) -> Response:
    """Return a response that was made at import, for an error whose own response could not be made."""
    return _NO_MEMORY if out_of_memory(error) else _INTERNAL
