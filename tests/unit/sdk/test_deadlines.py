"""A deadline bounds the whole exchange, in each phase, and answers are bounded in size."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import sie_sdk.connections
from sie_sdk import Item, ProtocolError, QueueFullError, SIEError, SIETimeoutError
from sie_sdk.codec import encode_body

Connect = Callable[..., Any]
DEADLINE = 0.6
SLACK = 1.0  # seconds by which a deadline may be exceeded
SCORED = encode_body(
    {"model": "m", "query_id": None, "scores": [{"item_id": "item-0", "score": 0.5, "rank": 0}]}
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/msgpack\r\nX-SIE-Server-Version: 1.0.0\r\n"


@contextmanager
def served(behave: Callable[[socket.socket, threading.Event], None], **options: int) -> Iterator[str]:
    """A server that runs `behave` on every connection; the event is set when the test is over."""
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    for name, value in options.items():
        listening.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behave(connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def drip(connection: socket.socket, over: threading.Event, data: bytes) -> None:
    for position in range(len(data)):
        connection.sendall(data[position : position + 1])
        if over.wait(0.1):
            return


def dripping_head(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    drip(connection, over, HEAD + b"X-A: b\r\n" * 100)


def dripping_body(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n")
    drip(connection, over, SCORED * 50)


def dripping_chunks(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while not over.wait(0.1):
        connection.sendall(b"1\r\nx\r\n")


def dripping_refusals(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 5000\r\n\r\n")
    drip(connection, over, b" " * 5000)


def slow_reading(connection: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.1):
        connection.recv(4096)


def silence(connection: socket.socket, over: threading.Event) -> None:
    over.wait(30)


def interim_answers(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    while not over.wait(0.1):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")


@pytest.mark.parametrize(
    "behave",
    [dripping_head, dripping_body, dripping_chunks, dripping_refusals, silence, interim_answers],
    ids=lambda behave: behave.__name__,
)
def test_a_deadline_ends_the_exchange(behave: Any, connect: Connect) -> None:
    with served(behave) as url:
        started = time.monotonic()
        with pytest.raises(SIETimeoutError, match="no answer in time"):
            connect(None, url).score("m", Item(text="q"), [Item(text="a")], deadline=DEADLINE)
        assert DEADLINE <= time.monotonic() - started + 0.05 < DEADLINE + SLACK


def test_a_deadline_ends_a_slow_upload(connect: Connect) -> None:
    text = "x" * 20_000_000
    with served(slow_reading, SO_RCVBUF=4096) as url:
        client = connect(None, url)
        started = time.monotonic()
        with pytest.raises(SIETimeoutError):
            client.score("m", Item(text="q"), [Item(text=text)], deadline=DEADLINE)
        assert time.monotonic() - started < DEADLINE + SLACK


def test_a_deadline_ends_a_name_that_is_not_resolved(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: over.wait(10) or [])
    started = time.monotonic()
    try:
        with pytest.raises(SIEError):
            connect(None, "http://somewhere.test:1").score(
                "m", Item(text="q"), [Item(text="a")], deadline=DEADLINE
            )
        assert time.monotonic() - started < DEADLINE + SLACK
    finally:
        over.set()


def test_an_exchange_within_its_deadline_is_not_cut(connect: Connect) -> None:
    def slowly(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(SCORED))
        drip(connection, over, SCORED[:8])
        connection.sendall(SCORED[8:])

    with served(slowly) as url:
        client = connect(None, url)
        for _ in range(2):  # the deadline of the first call does not hold for the second
            assert client.score("m", Item(text="q"), [Item(text="a")], deadline=20.0)["model"] == "m"


def test_an_endless_answer_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sie_sdk.connections, "LONGEST_ANSWER", 1 << 20)

    def endless(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while not over.is_set():
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    with served(endless) as url, pytest.raises(ProtocolError, match="longer than 1048576 bytes"):
        connect(None, url).score("m", Item(text="q"), [Item(text="a")], deadline=20.0)


def test_a_compressed_answer_is_bounded_by_what_it_becomes(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sie_sdk.connections, "LONGEST_ANSWER", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20))
    heads: list[bytes] = []

    def compressed(connection: socket.socket, over: threading.Event) -> None:
        heads.append(connection.recv(65536))
        body = bomb if len(heads) == 1 else gzip.compress(SCORED)
        connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)

    with served(compressed) as url:
        client = connect(None, url)
        with pytest.raises(ProtocolError, match="longer than 1048576 bytes"):
            client.score("m", Item(text="q"), [Item(text="a")])
        assert client.score("m", Item(text="q"), [Item(text="a")])["model"] == "m"
    assert b"accept-encoding: identity" in heads[0].lower()


def test_a_long_refusal_is_cut(connect: Connect) -> None:
    def long(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 400 No\r\nX-SIE-Error-Code: INVALID_INPUT\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not over.is_set():
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    with served(long) as url, pytest.raises(SIEError, match="status 400") as caught:
        connect(None, url).score("m", Item(text="q"), [Item(text="a")], deadline=20.0)
    assert caught.value.code == "INVALID_INPUT"


def test_a_deadline_of_the_request_ends_the_retries(connect: Connect) -> None:
    def busy(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        body = b'{"code": "QUEUE_FULL", "error": {"code": "QUEUE_FULL", "message": "not within deadline_ms"}}'
        head = b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nX-SIE-Server-Version: 1.0.0\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)

    with served(busy) as url:
        started = time.monotonic()
        with pytest.raises(QueueFullError, match="1 try"):
            connect(None, url).score("m", Item(text="q"), [Item(text="a")], options={"deadline_ms": 500})
        assert time.monotonic() - started < SLACK


def test_an_address_that_never_answers_does_not_hide_the_next(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with a broken IPv6 route has such an address first."""

    def score(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(SCORED) + SCORED)

    with served(score) as url, socket.socket() as full:
        port = int(url.rpartition(":")[2])
        full.bind(("127.0.0.2", port))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # the queue is full then, and the kernel drops further attempts
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(("127.0.0.2", port))
        places = [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]
        resolve = socket.getaddrinfo

        def resolved(host: Any, *args: Any, **options: Any) -> Any:
            named = host in ("two.example", b"two.example")
            return places if named else resolve(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        client = connect(None, f"http://two.example:{port}")
        assert client.score("m", Item(text="a"), [Item(text="b")], deadline=2 * DEADLINE)["scores"]
        for filler in fillers:
            filler.close()
