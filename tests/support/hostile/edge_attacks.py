"""Attacks on the HTTP edge: request lines, headers, connections. None needs a key or a model."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Callable, Iterator

from support.hostile import wire
from support.hostile.attack import Attack, Report, repeated, together
from support.hostile.scale import MIB, scaled

LONG_HEADER = scaled(8, 100) * MIB
START = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
HALF_OPEN = scaled(300, 900)  # below max_connections
BEYOND = scaled(1_100, 2_000)  # above it
TOO_LARGE = ("431", "closed")
SCORE = "/v1/score/sie/mini-en"


def endless(start: bytes, piece: bytes, size: int) -> Callable[[Report], None]:
    """Return an attack whose request has no end: `start`, then `size` bytes of `piece`."""

    def pieces() -> Iterator[bytes]:
        yield start
        yield from itertools.repeat(piece * (2**16 // len(piece)), size // 2**16)

    def act(report: Report) -> None:
        report.hold(size)
        while True:
            report.send(itertools.chain(pieces(), [b"\r\n\r\n"]))
            if report.over:
                return

    return act


def opened(report: Report, count: int, first: bytes) -> list[socket.socket]:
    """Open up to `count` connections that each send `first` and nothing else; the server may refuse some."""
    report.hold(count * max(len(first), 2**12))  # each costs the server a few objects
    connections = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            connection = wire.connect(report.port, timeout=1)
            connections.append(connection)
            connection.sendall(first)
        if report.over and len(connections) >= count // 2:
            break
    return connections


def half_open(count: int, first: bytes) -> Callable[[Report], None]:
    """Return an attack with connections that send a beginning and wait."""

    def act(report: Report) -> None:
        connections = opened(report, count, first)
        report.pause(60)
        report.close(connections)

    return act


def drip(first: bytes, piece: bytes) -> Callable[[Report], None]:
    """Return an attack with connections that send `piece` after `piece`, slowly."""

    def act(report: Report) -> None:
        connections = opened(report, 50, first)
        while not report.over:
            for connection in connections:
                with contextlib.suppress(OSError):  # closed by the server, as it should
                    connection.sendall(piece)
            report.pause(0.1)
        report.close(connections)

    return act


def come_and_go(report: Report) -> None:
    """Connect and leave at once, half of the time with a reset."""
    report.hold(2**20)

    def caller(number: int) -> None:
        for i in itertools.count():
            if report.over:
                return
            with contextlib.suppress(ConnectionError), wire.connect(report.port) as connection:
                if i % 2:
                    connection.sendall(START)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    together(4, caller)


def pipelined(request: bytes, *, read: bool) -> Callable[[Report], None]:
    """Return an attack that sends requests without waiting for answers, and reads these or not."""
    flood = request * (256 * 2**10 // len(request) + 1)

    def act(report: Report) -> None:
        report.hold(8 * MIB)  # what kernel and server may buffer in both directions

        def caller(number: int) -> None:
            with contextlib.suppress(OSError), wire.connect(report.port, timeout=0.2) as connection:
                while not report.over:
                    with contextlib.suppress(TimeoutError):
                        connection.sendall(flood)
                    if read:
                        with contextlib.suppress(TimeoutError):
                            connection.recv(2**20)

        together(4, caller)

    return act


UPGRADES = [
    START
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    START + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    wire.post(SCORE, b"{}", "Connection: Upgrade", "Upgrade: h2c"),
]
EXPECT = wire.head("POST", SCORE, 2**20, "Expect: 100-continue")

ATTACKS = [
    Attack("header without end", endless(START + b"x: ", b"a", LONG_HEADER), quick=True, only=TOO_LARGE),
    Attack("header name without end", endless(START, b"n", LONG_HEADER), only=TOO_LARGE),
    Attack("headers without end", endless(START, b"x: y\r\n", LONG_HEADER), quick=True, only=TOO_LARGE),
    Attack(
        "100,000 headers",
        repeated(lambda: [START + b"x: y\r\n" * 100_000 + b"\r\n"]),
        quick=True,
        only=TOO_LARGE,
    ),
    Attack("header of 1 MiB", repeated(lambda: [START + b"x: " + b"a" * MIB + b"\r\n\r\n"]), only=TOO_LARGE),
    Attack(
        "request line of 1 MiB",
        repeated(lambda: [b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n"]),
        quick=True,
    ),
    Attack("request line without end", endless(b"GET /", b"a", LONG_HEADER)),
    Attack("method without end", endless(b"", b"G", LONG_HEADER)),
    Attack("query without end", endless(b"GET /healthz?", b"a=b&", LONG_HEADER)),
    Attack(
        "chunk extension without end",
        endless(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
            b"e",
            LONG_HEADER,
        ),
    ),
    Attack(
        "trailers without end",
        endless(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
            b"x: y\r\n",
            LONG_HEADER,
        ),
        quick=True,
    ),
    Attack("bare line ends", endless(b"", b"\r\n", LONG_HEADER)),
    Attack("half-open connections", half_open(HALF_OPEN, START)),
    Attack("silent connections", half_open(HALF_OPEN, b"")),
    Attack("more connections than allowed", half_open(BEYOND, START), refusing=True, quick=True),
    Attack("bodies that wait for 100 Continue", half_open(HALF_OPEN, EXPECT)),
    Attack("headers byte by byte", drip(START + b"x: ", b"a")),
    Attack("bodies byte by byte", drip(wire.head("POST", SCORE, MIB), b"a"), quick=True),
    Attack("callers that come and go", come_and_go, quick=True),
    Attack("pipelined requests, answers unread", pipelined(START + b"\r\n", read=False), quick=True),
    Attack("pipelined requests, answers read", pipelined(START + b"\r\n", read=True)),
    Attack("pipelined posts", pipelined(wire.post("/v1/embeddings", b"{}"), read=True), quick=True),
    Attack("upgrades", repeated(lambda: UPGRADES, callers=2), quick=True),
]
