"""Read a request body up to a limit, and cancel work when the client disconnects."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from sie_server.errors import ClientGone, InputTooLong, InvalidInput

Result = TypeVar("Result")
DIGITS = re.compile("[0-9]{1,19}")


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, at most `limit` bytes. A larger Content-Length is rejected before the body is read.

    Raises:
        InputTooLong, InvalidInput, ClientGone
    """
    declared = request.headers.get("content-length")
    if declared is not None and DIGITS.fullmatch(declared) and int(declared) > limit:
        raise too_long(limit)
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_long(limit)
            chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("the client disconnected while sending the body") from None
    if _has_left(request):  # nothing has been done for it yet
        raise ClientGone("the client disconnected after sending the body")
    if not size:
        raise InvalidInput("the body is empty; send a JSON or msgpack object")
    return b"".join(chunks)


def _has_left(request: Request) -> bool:
    exchange = getattr(request.state, "exchange", None)  # absent if the app runs without the server
    return exchange is not None and bool(exchange.cycle.disconnected)


def too_long(limit: int) -> InputTooLong:
    """Return the error for a body of more than `limit` bytes."""
    return InputTooLong(
        f"the body is larger than {math.ceil(limit / 2**20)} MiB; send fewer items per request "
        "or raise the server's max_body_mb"
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, and cancel it when the client disconnects.

    Raises:
        ClientGone: the client disconnected. Errors of `work` pass through.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client disconnected")
        return task.result()
    finally:
        watch.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
