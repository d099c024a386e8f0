"""The connections of a client: they carry out the `Send` steps of a flow with httpx, which is imported on first use.

Connections belong to one process and, in asyncio, to one event loop. So they are opened on first use, once per event
loop, and forgotten in a forked process: an answer on a shared connection would reach the wrong process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sie_sdk.errors import SIEError
from sie_sdk.flow import Failure, Outcome, Reply, Send
from sie_sdk.network import bound, until
from sie_sdk.settings import Settings, SkewWatch

if TYPE_CHECKING:
    import asyncio

    import httpx

CONNECT_TIMEOUT = 10.0  # seconds; a host that takes longer is taken to be unreachable
LONGEST_ANSWER = 1 << 30  # bytes, decompressed
LONGEST_REFUSAL = 1 << 20  # bytes; the rest of an answer other than 200 is not read


def _trace() -> dict[str, str]:
    """Return the headers of the caller's trace (W3C Trace Context), if the program uses OpenTelemetry."""
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


class _Connections:
    """Base of both kinds. transport: an httpx transport that replaces the network; it belongs to its process."""

    def __init__(self, settings: Settings, transport: Any) -> None:
        self.answered = False  # whether the server has ever answered
        self._settings = settings
        self._transport = transport
        self._skew = SkewWatch()
        self._process = os.getpid()
        self._closed = False
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Use new connections from now on. The old ones are not closed, as another process may use them."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """Return the arguments of a new httpx client. Raises SIEError if there cannot be one."""
        import httpx

        if self._closed:
            raise SIEError("the client is closed; create a new one")
        if self._transport is not None and self._process != os.getpid():
            raise SIEError("the client has a transport of another process; create a client in this process")
        return {
            # The server does not compress, and an answer must not grow beyond the bytes that arrived.
            "headers": dict(self._settings.headers) | {"Accept-Encoding": "identity"},
            "transport": self._transport,
            # Waiting for a free connection would count as silence of the server, so their number is not limited.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32),
        }

    def _request(self, http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
        import httpx

        request = send.request
        headers = {"Accept": request.accept, "X-SIE-Request-ID": send.request_id} | _trace()
        if request.content_type is not None:
            headers["Content-Type"] = request.content_type
        return http.build_request(
            request.method,
            self._settings.base_url + request.path,
            content=request.body,
            headers=headers,
            timeout=httpx.Timeout(send.timeout, connect=min(send.timeout, CONNECT_TIMEOUT)),
        )

    def _outcome(self, response: httpx.Response, body: bytes, send: Send) -> Outcome:
        headers = {name.lower(): value for name, value in response.headers.items()}
        reply = Reply(response.status_code, headers, body)
        if not send.belongs(reply):
            self.forget()  # later answers on these connections belong to other requests, too
            return Failure(
                "wrong", f"the answer belongs to request {reply.request_id}, not {send.request_id}"
            )
        if reply.status == 200 and len(body) > LONGEST_ANSWER:
            return Failure("wrong", f"the answer is longer than {LONGEST_ANSWER} bytes")
        self._skew.see(headers)
        self.answered = self.answered or reply.from_server
        return reply

    def _failed(self, error: Exception, *, begun: bool) -> Failure:
        """Convert an exception of httpx, or asyncio's timeout, to a Failure, and raise any other again.

        begun: the head of the answer had arrived. Raises SIEError if the client was closed during the call.
        """
        import httpx

        if self._closed:
            raise SIEError("the client was closed during the call") from error
        detail = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            return Failure("timeout", "the deadline has passed")
        if not isinstance(error, httpx.HTTPError):
            raise error
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return Failure("connect", detail)
        if isinstance(error, httpx.TimeoutException):
            return Failure("timeout", detail)
        if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
            return Failure("invalid", detail)
        return Failure("broken" if begun else "dropped", detail)


class Connections(_Connections):
    """Blocking connections, shared by all threads."""

    def forget(self) -> None:
        """See the base class."""
        self._opening = threading.Lock()  # a new one, because a thread may have held the old one at the fork
        self._http: httpx.Client | None = None

    def send(self, send: Send) -> Outcome:
        """Carry out a step. Raises SIEError if the client is closed."""
        http = self._http or self._open()
        response = None
        try:
            with until(time.monotonic() + send.left):
                response = http.send(self._request(http, send), stream=True)
                return self._outcome(response, self._body(response), send)
        except Exception as exc:
            return self._failed(exc, begun=response is not None)
        finally:
            if response is not None:
                response.close()

    def close(self) -> None:
        """Close the connections; calls that run in other threads fail."""
        with self._opening:
            self._closed = True
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _open(self) -> httpx.Client:
        import httpx

        with self._opening:
            if self._http is None:
                self._http = bound(httpx.Client(**self._options()))
            return self._http

    @staticmethod
    def _body(response: httpx.Response) -> bytes:
        """Read the body up to the first piece beyond the limit."""
        body, most = bytearray(), _longest(response)
        for piece in response.iter_bytes():
            body += piece
            if len(body) > most:
                break
        return bytes(body)


class AsyncConnections(_Connections):
    """Connections for asyncio, one set per event loop."""

    def forget(self) -> None:
        """See the base class."""
        self._by_loop: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    async def send(self, send: Send) -> Outcome:
        """Carry out a step. Raises SIEError if the client is closed."""
        import asyncio  # slow to import; an application with an event loop has imported it already

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # trio's, for example
            raise SIEError(
                "SIEAsyncClient needs an event loop of asyncio; use SIEClient in a thread instead"
            ) from None
        http = self._by_loop.get(loop) or self._open(loop)
        response = None
        try:
            async with asyncio.timeout(send.left):
                response = await http.send(self._request(http, send), stream=True)
                return self._outcome(response, await self._body(response), send)
        except Exception as exc:
            return self._failed(exc, begun=response is not None)
        finally:
            if response is not None:
                await response.aclose()

    async def close(self) -> None:
        """Close the connections of the running event loop, and forget those of others."""
        import asyncio

        self._closed = True
        http = self._by_loop.pop(asyncio.get_running_loop(), None)
        self.forget()
        if http is not None:
            await http.aclose()

    def _open(self, loop: asyncio.AbstractEventLoop) -> httpx.AsyncClient:
        import httpx

        for other in list(self._by_loop):
            if other.is_closed():  # its connections cannot be used, and would keep it in memory
                self._by_loop.pop(other, None)
        return self._by_loop.setdefault(loop, httpx.AsyncClient(**self._options()))

    @staticmethod
    async def _body(response: httpx.Response) -> bytes:
        """Read the body up to the first piece beyond the limit."""
        body, most = bytearray(), _longest(response)
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                break
        return bytes(body)


def _longest(response: httpx.Response) -> int:
    return LONGEST_ANSWER if response.status_code == 200 else LONGEST_REFUSAL


_all: WeakSet[_Connections] = WeakSet()


def _after_fork() -> None:
    for connections in list(_all):
        connections.forget()


if hasattr(os, "register_at_fork"):  # absent on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
