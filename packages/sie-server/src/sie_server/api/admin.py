"""The admin routes: load, swap and unload models and adapters at run time, and show the use of keys.

`api.edge.gate` authorises the caller.

Bodies must have the content type application/json, which a web page of another origin cannot send without a CORS
preflight. Unknown fields are errors, so that a misspelled field never changes what a request does. An operation
continues when the client disconnects.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api import codec
from sie_server.api.edge.gate import ADMIN
from sie_server.api.reading import read, service_of
from sie_server.errors import InvalidInput
from sie_server.wire import (
    AdapterLoadRequest,
    AdapterUnloadRequest,
    AdminAnswer,
    AdminLoadRequest,
    AdminSwapRequest,
    AdminUnloadRequest,
    KeyList,
)

log = logging.getLogger("sie_server.admin")
Body = TypeVar("Body")


async def load(request: Request) -> Response:
    """POST /v1/admin/load"""
    body = await _read(request, AdminLoadRequest)
    work = service_of(request).admin.load(body.model, body.source, body.revision, body.pin)
    return await _answer(work)


async def unload(request: Request) -> Response:
    """POST /v1/admin/unload"""
    body = await _read(request, AdminUnloadRequest)
    return await _answer(service_of(request).admin.unload(body.model))


async def swap(request: Request) -> Response:
    """POST /v1/admin/swap"""
    body = await _read(request, AdminSwapRequest)
    given = (body.source, body.revision, body.replay, body.max_difference)
    return await _answer(service_of(request).admin.swap(body.model, *given))


async def load_adapter(request: Request) -> Response:
    """POST /v1/admin/adapters/load"""
    body = await _read(request, AdapterLoadRequest)
    return await _answer(service_of(request).admin.load_adapter(body.model, body.adapter, body.source))


async def unload_adapter(request: Request) -> Response:
    """POST /v1/admin/adapters/unload"""
    body = await _read(request, AdapterUnloadRequest)
    return await _answer(service_of(request).admin.unload_adapter(body.model, body.adapter))


async def keys(request: Request) -> Response:
    """GET /v1/admin/keys"""
    listed = KeyList(request.app.state.accounts.usage())
    return Response(msgspec.json.encode(listed), media_type=codec.JSON)


ACTIONS = {
    "load": load,
    "unload": unload,
    "swap": swap,
    "adapters/load": load_adapter,
    "adapters/unload": unload_adapter,
}
ROUTES = [
    *(Route(ADMIN + path, action, methods=["POST"]) for path, action in ACTIONS.items()),
    Route(f"{ADMIN}keys", keys),
]


async def _read(request: Request, kind: type[Body]) -> Body:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != codec.JSON:
        raise InvalidInput(f"admin routes accept only JSON; send the header Content-Type: {codec.JSON}")
    body: Body = await read(request, kind)
    client = request.client.host if request.client else "an unknown address"
    log.info("%s requested %s: %r", request.state.caller or client, request.scope["path"], body)
    return body


async def _answer(work: Coroutine[Any, Any, AdminAnswer]) -> Response:
    return Response(msgspec.json.encode(await work), media_type=codec.JSON)
