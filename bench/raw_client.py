"""A cheap HTTP client for benchmarks that send thousands of requests a second: prepared bytes over kept connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

import msgpack

JSON, MSGPACK = "application/json", "application/msgpack"


class Closed(ConnectionError):
    """The server has closed the connection instead of answering."""


@dataclass(frozen=True)
class Answer:
    """Status, the headers that benchmarks read, and the body."""

    status: int
    code: str
    retry_after: float | None
    body: bytes


def request(method: str, path: str, body: Any = None, *, media: str = JSON, headers: str = "") -> bytes:
    """Return the bytes of a request; `headers` are complete lines."""
    content = b"" if body is None else body if isinstance(body, bytes) else encode(body, media)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {media}\r\nContent-Type: {media}\r\n"
    return f"{head}{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content


def encode(body: Any, media: str) -> bytes:
    return bytes(msgpack.packb(body)) if media == MSGPACK else json.dumps(body).encode()


class Connection:
    """One connection, opened when it is needed and kept until the server or a caller closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: bytes, patience: float | None = None) -> Answer:
        """Send a request and return its answer. A kept connection that the server has closed is opened again once.

        Raises:
            TimeoutError: no answer within `patience` seconds; the connection is then closed.
            ConnectionError: no connection, or closed before the answer.
        """
        try:
            async with asyncio.timeout(patience):
                fresh = self._streams is None
                try:
                    return await self._ask(sent)
                except ConnectionError:
                    self.close()
                    if fresh:
                        raise
                    return await self._ask(sent)
        except BaseException:
            self.close()
            raise

    async def _ask(self, sent: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(sent)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            raise Closed("closed before an answer") from None
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        wait = headers.get("retry-after")
        return Answer(
            int(lines[0].split(" ")[1]), headers.get("x-sie-error-code", ""), wait and float(wait), body
        )

    def close(self) -> None:
        if self._streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].close()
            self._streams = None
