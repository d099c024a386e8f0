"""HTTP over bare sockets: send any bytes, and read what an answer must look like. A close is an answer too."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from support.hostile.scale import STALL_S

PIECE = 2**18


class Stalled(AssertionError):
    """The server neither answered nor closed the connection."""


@dataclass(frozen=True)
class Answer:
    """One HTTP response. Names of headers are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def connect(port: int, *, receive_buffer: int | None = None, timeout: float = STALL_S) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(timeout)
    connection.connect(("127.0.0.1", port))
    return connection


def head(method: str, path: str, length: int | None = None, *more: str) -> bytes:
    """Return the start of an ordinary request, with `more` header lines."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Accept: application/json", *more]
    if length is not None:
        lines += ["Content-Type: application/json"] * ("Content-Type" not in str(more))
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, body: bytes, *more: str) -> bytes:
    return head("POST", path, len(body), *more) + body


def exchange(port: int, request: bytes | Iterable[bytes], timeout: float = STALL_S) -> Answer | None:
    """Send a request on a new connection, and return the answer; None if the server closed the connection.

    Sending ends when the answer begins, because a server need not read a request that it rejects.

    Raises:
        Stalled: neither happened within `timeout` seconds.
    """
    with contextlib.suppress(ConnectionError), connect(port, timeout=timeout) as connection:
        send(connection, request, timeout)
        return read_answer(connection, timeout)
    return None


def send(connection: socket.socket, request: bytes | Iterable[bytes], timeout: float = STALL_S) -> None:
    """Send until the end or until the server answers."""
    end = time.monotonic() + timeout
    for piece in _pieces(request):
        rest = memoryview(piece)
        while rest:
            events = ready(connection, select.POLLIN | select.POLLOUT, end - time.monotonic())
            if events & select.POLLIN:
                return
            if not events:
                raise Stalled(f"the server stopped reading for {timeout} s")
            rest = rest[connection.send(rest[:PIECE]) :]


def ready(connection: socket.socket, events: int, timeout: float) -> int:
    """Wait for events of a connection, and return them. `select.select` has a limit of 1,024 connections."""
    poller = select.poll()
    poller.register(connection, events)
    found = poller.poll(max(0, round(timeout * 1000)))
    return found[0][1] if found else 0


def _pieces(request: bytes | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(request, bytes):
        yield request
    else:
        yield from request


def read_answer(
    connection: socket.socket, timeout: float = STALL_S, *, is_head: bool = False
) -> Answer | None:
    """Read one response; None if the server closes the connection before its first byte.

    Raises:
        Stalled: the response is not complete within `timeout` seconds.
    """
    return _read(_Reader(connection, time.monotonic() + timeout), is_head)


def _read(reader: _Reader, is_head: bool) -> Answer | None:
    end = b"\r\n\r\n"
    while end not in reader.held:
        if not reader.more():
            if not reader.held:
                return None
            raise Stalled(f"closed within the head of an answer: {reader.held[:200]!r}")
    first, _, rest = reader.held.partition(end)
    lines = first.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    version, status = lines[0].split(" ")[:2]
    if not version.startswith("HTTP/1.") or not status.isdigit():
        raise AssertionError(f"not an HTTP answer: {first[:200]!r}")
    reader.held = rest
    if status == "100":
        return _read(reader, is_head)
    if is_head or status in ("204", "304", "101"):
        return Answer(int(status), headers, b"")
    return Answer(int(status), headers, reader.body(headers))


class _Reader:
    """Bytes received so far on one connection."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self.connection, self.end, self.held = connection, end, b""

    def more(self) -> bool:
        """Receive something; False when the server has closed the connection."""
        self.connection.settimeout(max(0.01, self.end - time.monotonic()))
        try:
            received = self.connection.recv(2**18)
        except TimeoutError:
            raise Stalled(f"no complete answer; so far {self.held[:200]!r}") from None
        except ConnectionError:
            return False
        self.held += received
        return bool(received)

    def body(self, headers: dict[str, str]) -> bytes:
        if "chunked" in headers.get("transfer-encoding", ""):
            while not self.held.endswith(b"0\r\n\r\n") and self.more():
                pass
            return self.held
        size = int(headers["content-length"]) if "content-length" in headers else None
        while (size is None or len(self.held) < size) and self.more():
            pass
        if size is not None and len(self.held) < size:
            raise Stalled(f"closed after {len(self.held)} of {size} bytes of an answer")
        return self.held if size is None else self.held[:size]
