"""Decode request bodies and encode vectors: small ones at once, large ones on a thread. Steps ① and ⑨ of a request.

Every route reads its body here. msgspec decodes a body of 60 MiB in up to 0.2 s, in which no other thread runs, so at
most one large body is decoded at a time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from sie_server.api import codec
from sie_server.api.edge import encodings
from sie_server.api.edge.bodies import read_body, unless_gone
from sie_server.api.edge.budget import hold
from sie_server.arrays import Encoded
from sie_server.config import NAME_LENGTH
from sie_server.errors import InvalidInput
from sie_server.room import Threads
from sie_server.serving.backend import Backend
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import EncodeResponse

Result = TypeVar("Result")
LARGE = 2**20
MANY = 100  # vectors; in JSON each takes about 50 µs


class BodyThreads:
    """The threads of one application."""

    def __init__(self) -> None:
        self.decoding = Threads(1, thread_name_prefix="sie-decode")
        self.encoding = Threads(1, thread_name_prefix="sie-encode")

    def close(self) -> None:
        """End the threads after their current work."""
        for threads in (self.decoding, self.encoding):
            threads.shutdown(wait=False, cancel_futures=True)


async def read(
    request: Request,
    kind: Any,
    media: str = codec.JSON,
    convert: Callable[[Any], Any] = lambda decoded: decoded,
) -> Any:
    """Return `convert(body decoded as kind)`.

    The body may be compressed (`edge.encodings`). Texts that had to be changed are reported in `request.state.notes`.
    The result counts as memory of the request instead of the body. It may take several times as much: a text with one
    emoji takes four bytes per character, and a text of one character 50 bytes.

    Raises:
        InputTooLong, InvalidInput, UnsupportedEncoding, ClientGone, QueueFull
    """
    started = perf_counter()
    result = await _read(request, kind, media, convert)
    timing: RequestTiming = request.state.timing
    timing.step("decode", started)
    return result


async def _read(request: Request, kind: Any, media: str, convert: Callable[[Any], Any]) -> Any:
    coding = encodings.coding_of(request.headers.get("content-encoding"))
    limit = service_of(request).config.max_body_mb * 2**20
    content = await read_body(request, limit)
    request.state.body_bytes = len(content)  # for the access log

    def work() -> Any:
        return _decoded(request, encodings.inflated(content, coding, limit), media, kind, convert)

    if coding is None and len(content) <= LARGE:
        return work()
    result, needed = await unless_gone(
        request, _on_thread(request.app.state.threads.decoding, lambda: _measured(work()))
    )
    hold(request, max(0, needed - len(content)))
    return result


def _decoded(request: Request, body: bytes, media: str, kind: Any, convert: Callable[[Any], Any]) -> Any:
    if media != codec.JSON:
        return convert(codec.decode(body, media, kind))
    body, halves = encodings.readable(body)
    if halves:
        request.state.notes = [
            f"number of halves of surrogate pairs in the body that were replaced by U+FFFD: {halves}; cut texts "
            "between characters, not between UTF-16 units"
        ]
    try:
        return convert(codec.decode(body, media, kind))
    except InvalidInput:
        if problem := encodings.not_utf8(body, request.headers.get("content-type")):
            raise InvalidInput(problem) from None  # the cause, which a decoder may report as a wrong type
        raise


def _measured(value: Any) -> tuple[Any, int]:
    return value, memory_of(value)


async def encoded(request: Request, answer: EncodeResponse, encode: Callable[[], Result]) -> Result:
    """Return `encode()`, which turns the vectors of `answer` into a response.

    Raises:
        ClientGone
    """
    if len(answer.items) <= MANY:
        return encode()
    return await unless_gone(request, _on_thread(request.app.state.threads.encoding, encode))


async def _on_thread(threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def memory_of(value: Any) -> int:
    """Return about how many bytes a decoded value takes: its texts, lists, maps and structs."""
    total, left = 0, [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            total += sys.getsizeof(part)
        elif isinstance(part, list | tuple):
            total += sys.getsizeof(part)
            left.extend(part)
        elif isinstance(part, dict):
            total += sys.getsizeof(part)
            left.extend(part)
            left.extend(part.values())
        elif isinstance(part, Encoded):
            total += memoryview(part.raw).nbytes
        elif isinstance(part, msgspec.Struct):
            total += sys.getsizeof(part)
            left.extend(getattr(part, name) for name in part.__struct_fields__)
    return total


def service_of(request: Request) -> Backend:
    """Return the service of the app."""
    service: Backend = request.app.state.service
    return service


def check_model(service: Backend, name: str) -> str:
    """Return the model id in a body, MODEL or MODEL:ADAPTER, if it is not too long to be one.

    Raises:
        InvalidInput: the id of a model is longer than the longest possible one.
    """
    model, _ = service.resolve(name)
    if len(model) > NAME_LENGTH:
        raise InvalidInput(
            f"expected a model id of at most {NAME_LENGTH} characters, got {len(model)} - at `$.model`"
        )
    return name


async def model_of(request: Request, name: str | None, output: str | None) -> str:
    """Return the model in a body, else the first `--model` that has `output` (None: any).

    Metrics count the request for it.

    A model that is named at start and not loaded yet is waited for, because only its files say what it can do.

    Raises:
        InvalidInput: no model has the output.
        ModelLoading, ModelLoadFailed, ResourceExhausted
    """
    service = service_of(request)
    name = name or await service.first_with(output)
    if name is None:
        why = f"no --model of this server supports {output!r}" if output else "this server has no --model"
        raise InvalidInput(f"missing required field `model`; {why} - at `$.model`")
    request.state.model = check_model(service, name)
    return name
