"""One HTTP connection: uvicorn's protocol on httptools, with bounds on everything that a client controls.

Bytes reach the parser in slices of `SLICE`, and other connections are served after `PARSE_S`. An error before a
request is complete is answered here (`answers.py`). An error in a body is raised by `receive` in the application, which
then answers like to any other error. This module depends on the inside of uvicorn, so its version is pinned.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sie_server.api.edge import paths
from sie_server.api.edge.connections import answers, heads
from sie_server.api.edge.connections.deadlines import Transfer, head_deadline
from sie_server.api.edge.connections.edge import Edge
from sie_server.api.edge.connections.exchange import Exchange, Flow, Outgoing
from sie_server.api.edge.limits.pacing import Pace
from sie_server.errors import (
    HeadersTooLarge,
    InvalidInput,
    QueueFull,
    RequestTimeout,
    SIEError,
    no_memory,
)

SLICE = 4 * 1024  # of heads and of chunked bodies, which may consist of many small parts
SLICE_OF_LENGTH = 64 * 1024  # of other bodies
PARSE_S = 0.002  # then other connections are served
MAX_PIPELINE = 32  # requests that wait for the response to an earlier one
MAX_GAP = 64 * 1024  # bytes between two parts of a body: chunk sizes, their extensions, trailers
HIGH_WATER = 64 * 1024  # unsent bytes of a response that do not count
GAP_TOO_LARGE = HeadersTooLarge(
    "the chunk extensions or trailers of the body are larger than 64 KiB; send none"
)
ALL_IN_USE = QueueFull(
    "requests are in progress on all connections (max_connections); try again", retry_after_s=1
)
LINGER_S = 2.0  # a client that is still sending gets this time to read why its connection closes


class EdgeProtocol(HttpToolsProtocol):
    """uvicorn calls the methods with its arguments; `edge` is shared by all connections."""

    flow: Flow

    def __init__(self, *args: Any, edge: Edge, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._edge = edge
        self._now = self.loop.time()
        self._head = head_deadline(edge.config.header_timeout_s)
        self._body = Transfer(edge.config.body_timeout_s)
        self._response = Transfer(edge.config.body_timeout_s)
        self._slice = SLICE  # of the current body
        self._rest: deque[bytes] = deque()  # received and not parsed yet
        self._has_begun = False  # a byte of the next head has arrived
        self._head_size = 0  # bytes of the current head, or between two requests
        self._gap = 0  # bytes since the last part of the current body
        self._discarded = 0
        self._exchanges: list[Exchange] = []  # requests without a complete response, the newest last
        self._fault: SIEError | None = None  # raised by a callback of the parser
        self._last_answer: SIEError | None = None  # to send after the responses that are in progress
        self._linger_until: float | None = None
        self._is_evicted = False
        self._unsent_share = edge.budget.share()
        self._unsent = 0
        self._pace = Pace(edge.refusals)

    # ── the connection ──

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._now = self.loop.time()
        self._head.start(self._now)
        self._edge.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._edge.leave(self)
        self._rest.clear()
        for exchange in self._exchanges:  # uvicorn itself marks only the newest one
            exchange.cycle.disconnected = True
            exchange.cycle.message_event.set()
            exchange.share.release()
        self._unsent_share.release()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._is_deaf:
            self._discard(len(data))
            return
        self._rest.append(data)
        if len(self._rest) == 1:
            self._parse()

    def _parse(self) -> None:
        if self.parser is None:
            return  # the connection was lost before that
        try:
            self._parse_some()
        except MemoryError:
            self.fail(no_memory())

    def _parse_some(self) -> None:
        """Feed the parser until all bytes are parsed or `PARSE_S` have passed."""
        started = time.perf_counter()
        self._now = self.loop.time()
        while self._rest and not self._is_deaf:
            piece = self._rest.popleft()
            room = self._slice
            if self._is_between:
                room = min(SLICE, heads.MAX_HEAD - self._head_size)
            if len(piece) > room:
                self._rest.appendleft(piece[room:])
                piece = piece[:room]
            self._feed(piece)
            if self._rest and time.perf_counter() - started > PARSE_S:
                self.flow.pause_reading("slices")
                self.loop.call_soon(self._parse)
                return
        self.flow.resume_reading("slices")

    @property
    def _is_between(self) -> bool:
        """Whether the next byte belongs to a head and not to a body."""
        return not self._body.active

    @property
    def _is_deaf(self) -> bool:
        """Whether no further request is read from this connection."""
        return self._linger_until is not None or self._last_answer is not None or self.transport.is_closing()

    def _feed(self, piece: bytes) -> None:
        between = self._is_between
        if between:
            self._head.start(self._now)  # unless it has started
            self._head_size += len(piece)
        else:
            self._gap += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, MemoryError):  # of a callback
                raise MemoryError from error
            self.fail(self._fault or heads.not_http(piece, error))
        else:
            if between and self._is_between and self._head_size >= heads.MAX_HEAD:
                self.fail(heads.too_large())
            elif self._gap > MAX_GAP:
                self.fail(GAP_TOO_LARGE)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the head again without the offer to change the protocol; the parser would skip the body otherwise."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        head = heads.without_upgrade(method, version, self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        try:
            self.parser.feed_data(head)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError):
            self.fail(self._fault or InvalidInput("the header Upgrade cannot be ignored; send none"))
        else:
            if rest:
                self._rest.appendleft(rest)

    # ── callbacks of the parser ──

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head.start(self._now)
        self._has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body.active:  # a trailer; it must not change a request that the gate has admitted
            return
        super().on_header(name, value)
        if len(self.headers) > heads.MAX_HEADERS:
            self._raise(heads.too_large())

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if error := heads.check(method, version, self.url, self.headers):
            self._raise(error)
        if self.parser.should_upgrade():
            return  # `_ignore_upgrade` follows
        if len(self.pipeline) >= MAX_PIPELINE:
            self._raise(InvalidInput(f"more than {MAX_PIPELINE} requests wait for a response; send fewer"))
        if not self._edge.seats.begin(self) and not self._is_for_health:
            self._raise(ALL_IN_USE)
        self._head.stop()
        self._head_size = self._gap = self._discarded = 0
        exchange = Exchange(self._edge.budget.share(), self._pace, lambda: self._edge.seats.rest(self))
        self.scope["state"]["exchange"] = exchange
        super().on_headers_complete()
        self._has_begun = False
        has_length = any(name == b"content-length" for name, _ in self.headers)
        self._slice = SLICE_OF_LENGTH if has_length else SLICE
        self._body.start(self._now)
        exchange.cycle = self.cycle
        self.cycle.transport = Outgoing(self.transport, self.cycle, self.close)  # type: ignore[assignment]
        self._exchanges.append(exchange)

    @property
    def _is_for_health(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        return paths.clean(path, self._edge.config.root_path) in paths.HEALTH

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        exchange: Exchange = cycle.scope["state"]["exchange"]
        super()._start_asgi_task(cycle, partial(exchange.run, app))

    def on_body(self, body: bytes) -> None:
        exchange = self._exchanges[-1] if self._exchanges else None
        self._gap = 0
        self._body.moved(len(body), self._now)
        if exchange is None or exchange.error or self.cycle.response_complete:
            self._discard(len(body))
            return
        try:
            exchange.share.hold(len(body))
        except SIEError as error:
            exchange.refuse(error)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._body.stop()
        self._gap = 0
        if self._exchanges and self._exchanges[-1].cycle is self.cycle:
            self._exchanges[-1].complete = True
        super().on_message_complete()
        self._settle()

    def _raise(self, error: SIEError) -> None:
        self._fault = error
        raise error

    # ── responses ──

    def on_response_complete(self) -> None:
        self._exchanges = [each for each in self._exchanges if not each.cycle.response_complete]
        if self._linger_until is None:
            super().on_response_complete()
        self._count_unsent(self.loop.time())
        self._settle()

    def _settle(self) -> None:
        """After a response: send the last answer if there is one, or note that the connection is idle."""
        if self._exchanges or self.transport.is_closing():
            return
        if self._last_answer is not None and self._linger_until is None:
            self._edge.on_error(self._last_answer)
            self.transport.write(answers.whole_response(self._last_answer, self.server_state.default_headers))
            self._linger()
        elif not self._unsent:
            self._edge.seats.rest(self)

    def fail(self, error: SIEError) -> None:
        """Answer the request that is being received with an error, and read nothing more."""
        newest = self._exchanges[-1] if self._exchanges else None
        is_in_body = self._body.active
        self._head.stop()
        self._body.stop()
        self._rest.clear()
        self._last_answer = error
        if not is_in_body:
            self._settle()
        elif newest is None or newest.complete:
            self._linger()  # the response to this request is complete
        else:
            newest.cycle.keep_alive = False
            newest.refuse(error)

    def close(self) -> None:
        """Close after the response that has been written."""
        if (self._body.active or self._last_answer is not None) and not self._is_evicted:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close in a way that lets the client read the response while it is still sending."""
        if self._linger_until is not None or self.transport.is_closing():
            return
        self._linger_until = self.loop.time() + LINGER_S
        self._rest.clear()
        self.flow.resume_reading("slices")
        self.flow.resume_reading()
        self.transport.write_eof()
        self._edge.seats.rest(self)

    def _discard(self, size: int) -> None:
        self._discarded += size
        # twice the limit: a reset at a body's end could overtake the response that says why it was refused
        if self._discarded > 2 * self._edge.max_body:
            self.transport.abort()

    # ── the sweep ──

    def sweep(self, now: float, seconds: float) -> None:
        """End what is overdue; `seconds` have passed since the last sweep."""
        if self.flow.read_paused:
            self._head.wait(seconds)
            self._body.wait(seconds)
        self._count_unsent(now)
        if self._response.overdue(now) or (self._linger_until is not None and now > self._linger_until):
            self.transport.abort()
        elif self._head.overdue(now):
            self._end_head()
        elif self._body.overdue(now):
            self.fail(
                RequestTimeout(
                    "the body did not arrive in time (body_timeout_s, plus one second per 64 KiB); "
                    "send it without pauses"
                )
            )
        elif not self._exchanges:
            self._settle()

    def _end_head(self) -> None:
        if not self._has_begun:  # browsers open connections in advance
            self.transport.close()
        else:
            self.fail(
                RequestTimeout("the headers did not arrive in time (header_timeout_s); send them at once")
            )

    def _count_unsent(self, now: float) -> None:
        """Count response bytes that the client has not read, and how long it has not read any."""
        unsent = self.transport.get_write_buffer_size()
        self._unsent_share.set(max(0, unsent - HIGH_WATER))
        if unsent:
            self._response.start(now)
            self._response.moved(max(0, self._unsent - unsent), now)
        else:
            self._response.stop()
        self._unsent = unsent

    @property
    def held(self) -> int:
        """The bytes that this connection holds of the budget."""
        return self._unsent_share.held + sum(each.share.held for each in self._exchanges)

    def stalled_s(self, now: float) -> float:
        """Return how long the client of a busy connection has neither sent nor read anything; 0 if it need not."""
        if self.flow.read_paused and not self._unsent:
            return 0.0
        return max(self._body.stalled_s(now), self._response.stalled_s(now))

    def give_way(self) -> None:
        """End this connection because others need its place or its memory."""
        self._is_evicted = True
        if self._response.active or self._linger_until is not None:
            self.transport.abort()
        elif self._body.active or self._has_begun:
            self.fail(
                QueueFull(
                    "other requests need the place of this one; send it without pauses", retry_after_s=1
                )
            )
            if not self._exchanges:
                self.transport.close()
        else:
            self.transport.close()
