"""The connections of a client: they carry out the `Send` steps of a flow with httpx, which is imported on first use.

Connections belong to one process and, in asyncio, to one event loop. So they are opened on first use, once per event
loop, and forgotten in a forked process: an answer on a shared connection would reach the wrong process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from sie_sdk.errors import SIEError
from sie_sdk.flow import Failure, Outcome, Reply, Send
from sie_sdk.network import bound, is_inside_call, until
from sie_sdk.settings import Settings, SkewWatch

if TYPE_CHECKING:
    import asyncio

    import httpx

Http = TypeVar("Http", bound="httpx.Client | httpx.AsyncClient")
CONNECT_TIMEOUT = 10.0  # seconds; a host that takes longer is taken to be unreachable
DISCONNECTED = "disconnected without sending a response"  # by httpcore; others mean malformed bytes
CODINGS = ("identity", "gzip", "x-gzip", "deflate")
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
            "cookies": _no_cookies(),
            # Waiting for a free connection would count as silence of the server, so their number is not limited.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=32),
        }

    def _create(self, kind: type[Http]) -> Http:
        """Return a new httpx client. Raises SIEError if there cannot be one."""
        import httpx

        options = self._options()
        try:
            return kind(**options)
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as exc:  # of the environment
            raise SIEError(
                f"connections cannot be set up: {exc}; check the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and "
                "SSL_CERT_FILE"
            ) from exc

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
        if isinstance(error, (httpx.InvalidURL, UnicodeError)):  # the host's name, for example
            return Failure("invalid", detail)
        if not isinstance(error, httpx.HTTPError):
            raise error
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
            return Failure("connect", detail)
        if isinstance(error, httpx.TimeoutException):
            return Failure("timeout", detail)
        if isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol)):
            return Failure("invalid", detail)
        is_malformed = isinstance(error, httpx.RemoteProtocolError) and DISCONNECTED not in detail
        return Failure("broken" if begun or is_malformed else "dropped", detail)


class Connections(_Connections):
    """Blocking connections, shared by all threads."""

    def forget(self) -> None:
        """See the base class."""
        # A new one, because a thread may have held the old one at the fork. A destructor that calls may need it again.
        self._opening = threading.RLock()
        self._http: httpx.Client | None = None

    def send(self, send: Send) -> Outcome:
        """Carry out a step. Raises SIEError if the client is closed."""
        if is_inside_call():  # its thread may hold the locks of the connections
            with self._bound() as http:
                return self._send(http, send)
        return self._send(self._http or self._open(), send)

    def _send(self, http: httpx.Client, send: Send) -> Outcome:
        response = None
        try:
            with until(time.monotonic() + send.left):
                try:
                    response = http.send(self._request(http, send), stream=True)
                    return odd_coding(response) or self._outcome(response, self._body(response), send)
                finally:
                    if response is not None:
                        response.close()
        except Exception as exc:
            return self._failed(exc, begun=response is not None)

    def close(self) -> None:
        """Close the connections; calls that run in other threads fail."""
        with self._opening:
            self._closed = True
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _open(self) -> httpx.Client:
        with self._opening:
            if self._http is None:
                self._http = self._bound()
            return self._http

    def _bound(self) -> httpx.Client:
        import httpx

        return bound(self._create(httpx.Client), lambda: self._closed)

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
        self._running: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = {}

    async def send(self, send: Send) -> Outcome:
        """Carry out a step. Raises SIEError if the client is closed."""
        import asyncio  # slow to import; an application with an event loop has imported it already

        try:
            loop = asyncio.get_running_loop()
            if asyncio.current_task() is None:
                raise RuntimeError
        except RuntimeError:  # trio's, for example
            raise SIEError(
                "SIEAsyncClient needs a task in an event loop of asyncio; use SIEClient in a thread instead"
            ) from None
        http = self._by_loop.get(loop) or self._open(loop)
        response = None
        try:
            async with asyncio.timeout(send.left) as limit, self._registered(limit, loop):
                response = await http.send(self._request(http, send), stream=True)
                return odd_coding(response) or self._outcome(response, await self._body(response), send)
        except Exception as exc:
            return self._failed(exc, begun=response is not None)
        finally:
            if response is not None:
                await response.aclose()

    @asynccontextmanager
    async def _registered(
        self, limit: asyncio.Timeout, loop: asyncio.AbstractEventLoop
    ) -> AsyncIterator[None]:
        """Let `close` end a call, which may still be connecting."""
        running = self._running
        running[limit] = loop
        try:
            yield
        finally:
            del running[limit]

    async def close(self) -> None:
        """Close the connections of the running event loop and end its calls; forget those of other loops."""
        import asyncio

        self._closed = True
        loop = asyncio.get_running_loop()
        http = self._by_loop.pop(loop, None)
        for limit in [limit for limit, owner in self._running.items() if owner is loop]:
            limit.reschedule(loop.time())
        self.forget()
        if http is not None:
            await http.aclose()

    def _open(self, loop: asyncio.AbstractEventLoop) -> httpx.AsyncClient:
        import httpx

        for other in list(self._by_loop):
            if other.is_closed():  # its connections cannot be used, and would keep it in memory
                self._by_loop.pop(other, None)
        return self._by_loop.setdefault(loop, self._create(httpx.AsyncClient))

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


def odd_coding(response: httpx.Response) -> Failure | None:
    """Refuse compressions that were not requested and can make a small part of an answer very large."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    return None if coding in CODINGS else Failure("wrong", f"the answer has the Content-Encoding {coding!r}")


def _no_cookies() -> Any:
    """Return a jar that neither reads nor sends cookies: callers of one client must not share a session."""
    from http.cookiejar import CookieJar

    class NoCookies(CookieJar):
        def extract_cookies(self, response: Any, request: Any) -> None:
            pass

        def add_cookie_header(self, request: Any) -> None:
            pass

    return NoCookies()


_all: WeakSet[_Connections] = WeakSet()


def _after_fork() -> None:
    for connections in list(_all):
        connections.forget()


if hasattr(os, "register_at_fork"):  # absent on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
