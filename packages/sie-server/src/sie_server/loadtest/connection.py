"""One kept HTTP connection of a client. It follows no redirects and knows no proxies: requests go to the named host."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from sie_server.loadtest.errors import Failure
from sie_server.loadtest.target import Target

LONGEST_ANSWER = 2**26  # bytes
BUSY = (429, 503)
TIMEOUT, CLOSED = "timeout", "connection closed"
LONGEST_WAIT = 5.0  # seconds that a client waits for a Retry-After at most
SHOWN = 160  # characters of a message from the endpoint


class Connection:
    """Sends one request at a time. `close` may be called by another thread, and ends a request that waits."""

    def __init__(self, target: Target, timeout_s: float, headers: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout_s)
        if target.https:
            self._connection = http.client.HTTPSConnection(
                target.host, target.port, timeout=timeout_s, context=_certificates()
            )
        self._timeout = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        self._fresh, self._ended = True, False

    def ask(self, path: str, body: bytes) -> Any:
        """POST a body and return the decoded answer. A kept connection that has been closed is opened once again.

        Raises:
            Failure: no answer within the time limit, or one that is not a 200 with JSON.
        """
        fresh = self._fresh
        try:
            answer, content = self._asked(path, body)
        except Failure as failure:
            if fresh or failure.kind != CLOSED:
                raise
            answer, content = self._asked(path, body)
        self._fresh = False
        return _decoded(answer, content)

    def close(self) -> None:
        """End the connection and a request that waits on it."""
        self._ended = True
        opened = self._connection.sock
        with contextlib.suppress(OSError):
            if opened is not None:
                opened.shutdown(socket.SHUT_RDWR)
        self._drop()

    def _drop(self) -> None:
        self._fresh = True
        with contextlib.suppress(OSError):
            self._connection.close()

    def _asked(self, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        deadline = time.monotonic() + self._timeout
        try:
            self._connection.request("POST", path, body, self._headers)
            answer = self._connection.getresponse()
            content = self._read(answer, deadline)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise _failure(TimeoutError() if self._ended else error, self._timeout) from None
        if self._ended:  # a header that ends too early looks complete
            raise _failure(TimeoutError(), self._timeout)
        return answer, content

    def _read(self, answer: http.client.HTTPResponse, deadline: float) -> bytes:
        parts, size = [], 0
        while part := answer.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > LONGEST_ANSWER:
                self._drop()
                raise Failure("too long", f"the answer has more than {LONGEST_ANSWER >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        if answer.length:
            raise ConnectionError("the body is incomplete")
        answer.close()  # `read1` does not notice that the body ends, and the connection would not be free
        return b"".join(parts)


def _failure(error: OSError | http.client.HTTPException, timeout_s: float) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure(TIMEOUT, f"no complete answer within {timeout_s:g} s")
    if isinstance(error, ssl.SSLError):
        return Failure("TLS error", _line(error.reason or error))
    if isinstance(error, ConnectionRefusedError):
        return Failure("connection refused", "nothing listens at this address")
    if isinstance(error, ConnectionError | http.client.IncompleteRead):
        return Failure(CLOSED, "the endpoint closed the connection before the end of its answer")
    if isinstance(error, http.client.HTTPException):
        return Failure("no HTTP", _line(error) or type(error).__name__)
    return Failure("no connection", _line(error.strerror or error))


@cache
def _certificates() -> ssl.SSLContext:
    """Read the trusted certificates once, which takes 20 ms."""
    return ssl.create_default_context()


def _decoded(answer: http.client.HTTPResponse, content: bytes) -> Any:
    status = answer.status
    if 300 <= status < 400:
        target = _line(answer.headers.get("location", "another address"))
        raise Failure(
            f"redirect {status}", f"to {target}, which is not followed; name that URL if it is right"
        )
    if status != 200:
        wait = answer.headers.get("retry-after", "")
        seconds = min(float(wait), LONGEST_WAIT) if wait.isdecimal() else 0.0
        raise Failure(f"HTTP {status}", _line(_message(content)), refused=status in BUSY, retry_after=seconds)
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Failure(
            "not JSON", f"the answer starts with {_line(content[:60].decode(errors='replace'))!r}"
        ) from None


def _message(content: bytes) -> str:
    """Return the error message of an answer, under the names that the dialects give it."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content[:SHOWN].decode(errors="replace")
    for name in ("error", "detail", "message"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value)


def _line(text: object) -> str:
    """Return a text of a stranger as one short line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
