"""One request on a connection, and its two directions as uvicorn and the application see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sie_server.api.edge.budget import Share
from sie_server.api.edge.limits.pacing import Pace
from sie_server.errors import SIEError

MOST_JOINED = 65_536  # bytes of a body that are copied to send them with the head


class Exchange:
    """One request and its response. The application finds it as `request.state.exchange`."""

    def __init__(self, share: Share, pace: Pace, rest: Callable[[], None]) -> None:
        """`pace` belongs to the connection. `rest` lets the connection end if another client needs its place."""
        self.share, self.pace, self.rest = share, pace, rest
        self.cycle: RequestResponseCycle = None  # type: ignore[assignment]
        self.complete = False  # the whole body has arrived
        self.error: SIEError | None = None  # answer with this instead of running the request

    def refuse(self, error: SIEError) -> None:
        """Let `receive` raise the error, and drop the body."""
        self.error = error
        self.cycle.body = bytearray()
        self.share.release()
        self.cycle.message_event.set()

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; `receive` raises `error`."""

        async def receive_or_raise() -> Message:
            message = {} if self.error else await receive()
            if self.error:
                raise self.error
            return message

        try:
            await app(scope, receive_or_raise, send)
        finally:
            self.share.release()


class Flow(FlowControl):
    """Pauses reading while there is at least one reason: uvicorn's own, or bytes that are parsed later."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._reasons: set[str] = set()

    def pause_reading(self, reason: str = "uvicorn") -> None:
        if not self._reasons:
            self._transport.pause_reading()
        self._reasons.add(reason)
        self.read_paused = True

    def resume_reading(self, reason: str = "uvicorn") -> None:
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self.read_paused = False
                self._transport.resume_reading()


class Outgoing:
    """The transport as a response sees it: a head is sent with the start of its body, in one segment.

    `close` lets a client that is still sending read the response first.
    """

    def __init__(
        self, transport: asyncio.Transport, cycle: RequestResponseCycle, close: Callable[[], None]
    ) -> None:
        self.is_closing = transport.is_closing
        self._transport, self._cycle, self._close = transport, cycle, close
        self._head: bytes | None = None
        self._head_is_next = cycle.scope["method"] != "HEAD"  # whose response has no body

    def write(self, data: bytes) -> None:
        """Send bytes; the application sends a body right after the head."""
        if self._head_is_next and self._cycle.response_started:
            self._head_is_next, self._head = False, data
        elif self._head is None:
            self._transport.write(data)
        elif len(data) > MOST_JOINED:
            self._flush()
            self._transport.write(data)
        else:
            head, self._head = self._head, None
            self._transport.write(head + data)

    def close(self) -> None:
        """Close after what has been written."""
        self._flush()
        self._close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)
