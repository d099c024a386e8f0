"""The deadline of a blocking call: no wait on the network lasts longer.

The timeouts of httpx hold for one operation on a socket, so an answer that drips byte by byte never exceeds them.
`bound` puts a `BoundedBackend` below the connections of an httpx client. Each of its operations ends with the deadline
of the call that runs in the same thread (`until`). asyncio needs none of this: a timeout can end a call at any await.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

PIECE = 8192  # bytes; one write to a socket may wait twice if the reader is slow and the piece large
_call = threading.local()


@contextmanager
def until(moment: float) -> Iterator[None]:
    """End all waits of this thread inside the block at `moment`, in seconds of time.monotonic."""
    outer = getattr(_call, "until", None)
    _call.until = moment
    try:
        yield
    finally:
        _call.until = outer


def is_inside_call() -> bool:
    """Return whether this thread is in a block of `until`: a destructor or a signal handler interrupts a call."""
    return getattr(_call, "until", None) is not None


def bound(client: httpx.Client, is_closed: Callable[[], bool]) -> httpx.Client:
    """Make `client` observe `until`, also for its proxies. A transport of another kind stays as it is.

    Closing a client does not end a connection that is being opened; `is_closed` is asked when it is open.
    """
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            pool._network_backend = BoundedBackend(pool._network_backend, is_closed)
    return client


class BoundedBackend:
    """An httpcore.NetworkBackend whose connections end with the call's deadline."""

    def __init__(self, inner: Any, is_closed: Callable[[], bool]) -> None:
        self._inner, self._is_closed = inner, is_closed

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> BoundedStream:
        """Try the addresses of `host` in order, all within `timeout` seconds. Raises httpcore.ConnectTimeout.

        Each address has an equal part of the time that is left, so one that never answers does not hide the others.
        """
        import httpcore

        ends = time.monotonic() + (math.inf if timeout is None else timeout)
        failure: Exception | None = None
        addresses = _addresses(host, port, _left(ends - time.monotonic(), httpcore.ConnectTimeout))
        for i, address in enumerate(addresses):
            left = _left(ends - time.monotonic(), httpcore.ConnectTimeout)
            part = None if left is None else left / (len(addresses) - i)
            try:
                stream = BoundedStream(self._inner.connect_tcp(address, port, timeout=part, **options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = failure or exc
                continue
            if self._is_closed():
                stream.close()
                raise httpcore.ConnectError("the client is closed")
            return stream
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(self, path: str, timeout: float | None = None, **options: Any) -> BoundedStream:
        """Connect to a socket file."""
        import httpcore

        left = _left(timeout, httpcore.ConnectTimeout)
        return BoundedStream(self._inner.connect_unix_socket(path, timeout=left, **options))

    def sleep(self, seconds: float) -> None:
        """Wait; httpcore calls it between its own retries."""
        self._inner.sleep(seconds)


class BoundedStream:
    """An httpcore.NetworkStream whose operations end with the call's deadline."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        import httpcore

        data: bytes = self._inner.read(max_bytes, timeout=_left(timeout, httpcore.ReadTimeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        import httpcore

        view = memoryview(buffer)
        for start in range(0, len(view), PIECE):
            self._inner.write(view[start : start + PIECE], timeout=_left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> BoundedStream:
        """Return the encrypted stream."""
        import httpcore

        left = _left(timeout, httpcore.ConnectTimeout)
        return BoundedStream(self._inner.start_tls(ssl_context, server_hostname, timeout=left))

    def close(self) -> None:
        """Close the connection, and end a read that waits in another thread."""
        with suppress(OSError, AttributeError):
            self._inner.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks about the socket."""
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """Return the seconds that an operation may take. Raises `error` if none are left."""
    moment: float | None = getattr(_call, "until", None)
    left = math.inf if moment is None else moment - time.monotonic()
    if timeout is not None:
        left = min(left, timeout)
    if left <= 0:
        raise error("the deadline has passed")
    return None if math.isinf(left) else left


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    """Resolve a name. It takes place in a thread, because the system's resolver has no timeout."""
    import httpcore

    if _is_address(host):
        return [host]
    found: list[Any] = []

    def resolve() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            found.append(httpcore.ConnectError(str(exc)))

    thread = threading.Thread(target=resolve, name="sie-resolve", daemon=True)
    thread.start()
    thread.join(timeout)
    if not found:
        raise httpcore.ConnectTimeout(f"the name {host} was not resolved in time")
    if isinstance(found[0], Exception):
        raise found[0]
    return list(dict.fromkeys(str(place[4][0]) for place in found[0]))


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False
