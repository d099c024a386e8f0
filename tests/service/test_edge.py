"""Raw bytes to a real server: every bound of the HTTP edge, and the answers of odd but valid requests.

The server has no API keys, and limits that a test reaches in a second.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest

from sie_server.api.edge.connections.edge import SPARE, Edge
from sie_server.config import ConfigError
from support.servers.inprocess import FP32
from support.servers.loopback import Loopback, answer, is_closed, listening, reader_of, refusal, send
from support.waiting import eventually

MIB = 2**20
BODY = b'{"query": {"text": "rain"}, "items": [{"text": "rain falls"}, {"text": "stars"}]}'
LINE = b"POST /v1/score/sie/mini-en HTTP/1.1\r\n"
HEAD = LINE + b"Host: localhost\r\nAccept: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
GET = b"GET /healthz HTTP/1.1\r\n"
UPGRADE = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    limits = {"header_timeout_s": 0.5, "body_timeout_s": 1.0, "max_body_mb": 8, "max_bodies_mb": 16}
    with listening(**limits) as it:
        assert it.send(HEAD + LENGTH + BODY).status_code == 200  # the model is loaded
        yield it


@pytest.fixture(autouse=True)
def nothing_is_left(server: Loopback) -> Iterator[None]:
    """After each test the server holds no bytes and still answers."""
    yield
    assert eventually(lambda: server.edge.budget.used == 0)
    assert server.get("/healthz").text == "ok"


# ── heads ──

TOO_LARGE = {
    "a header without end": (GET + b"A: ", *[b"a" * MIB] * 100),
    "a name without end": (GET, *[b"a" * MIB] * 10),
    "a request line without end": (b"GET /", *[b"a" * MIB] * 10),
    "a query without end": (b"GET /?", *[b"a" * MIB] * 10),
    "blanks without end": (GET + b"A: ", *[b" " * MIB] * 10),
    "line breaks without end": (b"\r\n" * MIB, b"\r\n" * MIB),
    "100,000 headers": (GET, *[b"a: b\r\n" * 1000] * 100),
    "201 headers": (GET + b"a: b\r\n" * 201 + b"\r\n",),
    "64 KiB in one header": (GET + b"A: " + b"a" * (65536 - len(GET) - 6) + b"\r\n\r\n",),
    "the same below a body": (HEAD + LENGTH + BODY + GET + b"A: " + b"a" * 65536 + b"\r\n\r\n",),
    "a trailer without end": (HEAD + CHUNKED + b"1\r\na\r\n0\r\nA: ", *[b"a" * MIB] * 10),
    "trailers without end": (HEAD + CHUNKED + b"1\r\na\r\n0\r\n", *[b"a: b\r\n" * 1000] * 100),
    "an extension without end": (HEAD + CHUNKED + b"1;", *[b"a" * MIB] * 10),
    "a chunk size without end": (HEAD + CHUNKED, *[b"0" * MIB] * 10),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_head_without_end(server: Loopback, name: str) -> None:
    with server.connect() as connection:
        send(connection, *TOO_LARGE[name])
        if "below" in name:
            assert answer(connection).status_code == 200
        message = refusal(answer(connection), 431, "HEADERS_TOO_LARGE")
        assert "64 KiB" in message
        assert is_closed(connection)


@pytest.mark.parametrize("size", [60_000, 65536 - len(GET) - 7])
def test_a_head_within_the_limit(server: Loopback, size: int) -> None:
    assert server.send(GET + b"A: " + b"a" * size + b"\r\n\r\n").text == "ok"
    assert server.send(GET + b"a: b\r\n" * 200 + b"\r\n").text == "ok"


INVALID = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 2.0": b"GET /healthz HTTP/2.0\r\n\r\n",
    "version 0.9": b"GET /healthz HTTP/0.9\r\n\r\n",
    "no path": b"GET http://localhost HTTP/1.1\r\n\r\n",
    "a path in Latin-1": b"GET /\xff HTTP/1.1\r\n\r\n",
    "a folded header": GET + b"A: b\r\n c\r\n\r\n",
    "a zero byte": GET + b"A: b\0c\r\n\r\n",
    "a blank before the colon": GET + b"A : b\r\n\r\n",
    "5,000 zeros": HEAD + b"Content-Length: " + b"0" * 5000 + LENGTH[16:] + BODY,
    "20 digits": HEAD + b"Content-Length: 18446744073709551615\r\n\r\n",
    "30 digits": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a sign": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": HEAD + b"Content-Length: -3\r\n\r\nabc",
    "a list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a length in Latin-1": HEAD + b"Content-Length: \xb2\r\n\r\nab",
    "an empty length": HEAD + b"Content-Length:\r\n\r\n",
    "a length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "gzip": HEAD + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "gzip in chunks": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + IN_CHUNKS,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + IN_CHUNKS,
    "chunked in two headers": HEAD + b"Transfer-Encoding: chunked\r\n" + CHUNKED + IN_CHUNKS,
    "chunks in HTTP/1.0": HEAD.replace(b"/1.1", b"/1.0") + CHUNKED + IN_CHUNKS,
    "a chunk size in letters": HEAD + CHUNKED + b"zz\r\n",
    "a negative chunk size": HEAD + CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
    "a chunk of 17 digits": HEAD + CHUNKED + b"f" * 17 + b"\r\na\r\n0\r\n\r\n",
    "a chunk longer than its size": HEAD + CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_bytes_that_are_no_valid_request(server: Loopback, name: str) -> None:
    with server.connect() as connection:
        send(connection, INVALID[name])
        refusal(answer(connection), 400, "INVALID_INPUT")
        assert is_closed(connection)


def test_connect_is_not_allowed(server: Loopback) -> None:
    refusal(server.send(b"CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n"), 405, "METHOD_NOT_ALLOWED")


def test_an_invalid_request_does_not_disturb_the_answers_before_it(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, HEAD + LENGTH + BODY + GET + b"\r\n" + b"hello\r\n\r\n")
        assert "scores" in answer(connection).json()
        assert answer(connection).text == "ok"
        refusal(answer(connection), 400, "INVALID_INPUT")
        assert is_closed(connection)


def test_too_many_requests_at_once(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, (GET + b"\r\n") * 100)
        answers = [answer(connection) for _ in range(34)]
        assert {each.text for each in answers[:33]} == {"ok"}
        assert "32 requests" in refusal(answers[33], 400, "INVALID_INPUT")
        assert is_closed(connection)


def test_some_requests_at_once_are_answered_in_order(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, b"".join(b"GET /v1/%d HTTP/1.1\r\n\r\n" % i for i in range(20)))
        for i in range(20):
            assert f"/v1/{i};" in refusal(answer(connection), 404, "NOT_FOUND")


# ── time ──


def dripping(connection: socket.socket, byte: bytes) -> bool:
    """Send a byte now and then until the server answers or closes the connection; return whether it did."""
    connection.settimeout(0.05)

    def is_answered() -> bool:
        send(connection, byte)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    answered = eventually(is_answered, within=20)
    connection.settimeout(20)
    return answered


@pytest.mark.parametrize("start", [b"G", GET, GET + b"A", GET + b"A: b", GET + b"A: b\r\n", HEAD + b"\r"])
def test_a_head_that_stops(server: Loopback, start: bytes) -> None:
    assert "header_timeout_s" in refusal(server.send(start), 408, "REQUEST_TIMEOUT")


def test_a_head_that_drips(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, GET + b"A: ")
        assert dripping(connection, b"a")
        refusal(answer(connection), 408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize("start", [b"", b"\r\n"])
def test_a_connection_without_a_request_is_closed_silently(server: Loopback, start: bytes) -> None:
    with server.connect() as connection:
        send(connection, start)
        assert is_closed(connection)


def test_a_second_head_that_stops(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, GET + b"\r\n")
        assert answer(connection).text == "ok"
        send(connection, GET)
        refusal(answer(connection), 408, "REQUEST_TIMEOUT")


BODIES = {
    "a length": b"Content-Length: 1000\r\n\r\n",
    "a length, one byte": b"Content-Length: 1000\r\n\r\n{",
    "chunks": CHUNKED,
    "a chunk size": CHUNKED + b"5",
    "a chunk": CHUNKED + b"5\r\nab",
    "a trailer": CHUNKED + b"1\r\na\r\n0\r\nA",
    "continue": b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_stops(server: Loopback, name: str) -> None:
    with server.connect() as connection:
        send(connection, HEAD + BODIES[name])
        assert "body_timeout_s" in refusal(answer(connection), 408, "REQUEST_TIMEOUT")
        assert is_closed(connection)


@pytest.mark.parametrize(
    ("start", "byte"),
    [
        (b"Content-Length: 1000\r\n\r\n", b"a"),
        (CHUNKED, b"1\r\na\r\n"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"1\r\na\r\n0\r\nA: ", b"a"),
    ],
)
def test_a_body_that_drips(server: Loopback, start: bytes, byte: bytes) -> None:
    with server.connect() as connection:
        send(connection, HEAD + start)
        assert dripping(connection, byte)
        refusal(answer(connection), 408, "REQUEST_TIMEOUT")


@pytest.mark.parametrize("line", [b"GET /healthz HTTP/1.1\r\n", b"POST /nowhere HTTP/1.1\r\n"])
def test_a_body_that_nobody_reads_also_has_a_deadline(server: Loopback, line: bytes) -> None:
    with server.connect() as connection:
        send(connection, line + b"Content-Length: 1000\r\n\r\na")
        assert answer(connection).status_code in (200, 404)
        assert dripping(connection, b"a")
        assert is_closed(connection)


def test_a_client_that_does_not_read(server: Loopback) -> None:
    with server.connect(receive_buffer=4096) as connection:
        send(connection, b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\n\r\n" * 30)
        assert eventually(lambda: server.edge.budget.used > 0)
        assert eventually(lambda: server.edge.budget.used == 0)
        with pytest.raises((ConnectionResetError, AssertionError)):
            while data := connection.recv(MIB):
                assert data
            raise AssertionError("closed before the end")


# ── bodies ──


@contextmanager
def held(server: Loopback, count: int, size: int, *, rest: int = MIB) -> Iterator[list[socket.socket]]:
    """Keep bodies of `size` bytes open that lack their last bytes."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(count)]
        for connection in connections:
            send(connection, HEAD + b"Content-Length: %d\r\n\r\n" % (size + rest), b" " * size)
        yield connections


def test_unfinished_bodies_do_not_block_a_small_request(server: Loopback) -> None:
    with held(server, 6, 6 * MIB):
        assert server.edge.budget.used <= 16 * MIB
        for _ in range(5):
            assert server.send(HEAD + LENGTH + BODY).status_code == 200


def test_the_body_that_does_not_fit_is_refused(server: Loopback) -> None:
    """The others finish. While the connections are active, none of them has stalled."""
    with held(server, 3, 6 * MIB, rest=len(BODY)) as connections:
        answers = []
        for connection in connections:
            send(connection, BODY)
            answers.append(answer(connection))
        refused = [each for each in answers if each.status_code != 200]
        assert len(refused) == 1 and [each.status_code for each in answers].count(200) == 2
        assert "max_bodies_mb" in refusal(refused[0], 503, "QUEUE_FULL")


def test_a_stalled_body_gives_way_to_an_active_one(server: Loopback) -> None:
    with held(server, 2, 6 * MIB) as connections:
        assert eventually(lambda: len(server.edge._candidates) == 2)
        large = b" " * (6 * MIB - len(BODY)) + BODY
        assert server.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(large), large).status_code == 200
        [ended] = select.select(connections, [], [], 30)[0]
        refusal(answer(ended), 503, "QUEUE_FULL")


def test_a_declared_length_counts_nothing(server: Loopback) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(server.connect())
            send(connection, HEAD + b"Content-Length: %d\r\n\r\n" % (8 * MIB), b" ")
        assert server.send(HEAD + LENGTH + BODY).status_code == 200


def test_the_answer_to_a_refused_body_can_be_read_after_sending_all_of_it(server: Loopback) -> None:
    for path in (b"/v1/score/sie/mini-en", b"/nowhere", b"/v1/admin/nothing"):
        head = b"POST %s HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path, 9 * MIB)
        with server.connect() as connection:
            assert send(connection, head, *[b" " * MIB] * 9)
            assert answer(connection).status_code in (404, 413)


def test_a_refused_body_without_end_is_not_read_for_ever(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, b"POST /nowhere HTTP/1.1\r\n" + CHUNKED)
        refusal(answer(connection), 404, "NOT_FOUND")
        assert not send(connection, *[b"100000\r\n" + b" " * MIB + b"\r\n"] * 200)


def test_many_tiny_chunks_do_not_hold_up_others(server: Loopback) -> None:
    """Parsing stops after a few milliseconds, so others are answered while one body is parsed."""
    flood, done = b"1\r\n \r\n" * 500_000, threading.Event()

    def attack() -> None:
        with server.connect() as connection:
            send(connection, HEAD + CHUNKED, flood)
            send(connection, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert answer(connection).status_code == 200
        done.set()

    attacker = threading.Thread(target=attack)
    attacker.start()
    answered = 0
    while not done.is_set():
        assert server.send(GET + b"\r\n").text == "ok"
        answered += 1
    attacker.join()
    assert answered > 3


# ── valid requests ──


def split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for at in range(1, len(data), 7):
        yield data[:at], data[at:]


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0", b"h2c, websocket"])
@pytest.mark.parametrize("body", [LENGTH + BODY, CHUNKED + IN_CHUNKS], ids=["length", "chunked"])
def test_an_offer_to_upgrade_is_ignored(server: Loopback, upgrade: bytes, body: bytes) -> None:
    offer = UPGRADE.replace(b"h2c", upgrade)
    with server.connect() as connection:
        for request in (HEAD + offer + body, HEAD + body, HEAD + offer + body):
            send(connection, request)
            assert "scores" in answer(connection).json()


@pytest.mark.parametrize("body", [LENGTH + BODY, CHUNKED + IN_CHUNKS], ids=["length", "chunked"])
def test_an_offer_to_upgrade_is_ignored_wherever_its_packets_end(server: Loopback, body: bytes) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for first, second in split(HEAD + UPGRADE + body):
            send(connection, first)
            time.sleep(0.001)  # two packets; the result is the same if they arrive as one
            send(connection, second)
            assert "scores" in answer(connection).json()


def test_requests_after_an_offer_to_upgrade_keep_their_order(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, HEAD + UPGRADE + LENGTH + BODY + GET + UPGRADE + b"\r\n" + GET + b"\r\n")
        assert "scores" in answer(connection).json()
        assert [answer(connection).text for _ in range(2)] == ["ok", "ok"]


def test_an_offer_to_upgrade_does_not_change_the_request(server: Loopback) -> None:
    """The body is no second request, the connection still closes, and limits still apply."""
    inner = b"GET /nowhere HTTP/1.1\r\n\r\n"
    closing = UPGRADE.replace(b"Upgrade, ", b"close, upgrade, ", 1)
    with server.connect() as connection:
        send(connection, HEAD + closing + b"Content-Length: %d\r\n\r\n" % len(inner) + inner)
        response = answer(connection)
        refusal(response, 400, "INVALID_INPUT")
        assert response.headers["connection"] == "close" and is_closed(connection)
    many = HEAD + UPGRADE + b"a: b\r\n" * 200 + LENGTH + BODY
    refusal(server.send(many), 431, "HEADERS_TOO_LARGE")
    both = HEAD + UPGRADE + b"Transfer-Encoding: gzip\r\n\r\n"
    refusal(server.send(both), 400, "INVALID_INPUT")


def test_http_1_0_and_keep_alive(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, b"GET /healthz HTTP/1.0\r\n\r\n")
        assert answer(connection).text == "ok" and is_closed(connection)
    with server.connect() as connection:
        for _ in range(3):
            send(connection, GET + b"Connection: keep-alive\r\n\r\n")
            assert answer(connection).text == "ok"
        send(connection, GET + b"Connection: close\r\n\r\n")
        assert answer(connection).text == "ok" and is_closed(connection)


def test_head_and_continue(server: Loopback) -> None:
    with server.connect() as connection:
        send(connection, b"HEAD /healthz HTTP/1.1\r\n\r\n")
        response = answer(connection, "HEAD")
        assert (response.status_code, response.content) == (200, b"")
        send(connection, HEAD + b"Expect: 100-continue\r\n" + LENGTH)
        assert reader_of(connection).read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        send(connection, BODY)
        assert "scores" in answer(connection).json()


def test_a_trailer_is_no_header(server: Loopback) -> None:
    """The gate has judged the headers before the trailers arrive."""
    in_chunks = IN_CHUNKS[:-2] + b"Content-Type: application/msgpack\r\nAccept: application/msgpack\r\n\r\n"
    assert "scores" in server.send(HEAD + CHUNKED + in_chunks).json()


def test_one_byte_at_a_time(server: Loopback) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send(connection, *(bytes([byte]) for byte in HEAD + CHUNKED + IN_CHUNKS))
        assert "scores" in answer(connection).json()


# ── connections ──

SIZE = 8


@pytest.fixture
def small() -> Iterator[Loopback]:
    with listening(max_connections=SIZE, header_timeout_s=60.0, body_timeout_s=60.0) as it:
        yield it


def test_an_idle_connection_gives_way(small: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(small.connect()) for _ in range(SIZE)]
        for connection in idle:
            send(connection, GET + b"\r\n")
            assert answer(connection).text == "ok"
        for _ in range(3):
            refusal(small.send(b"GET /nowhere HTTP/1.1\r\n\r\n"), 404, "NOT_FOUND")
        assert is_closed(idle[0])
        send(idle[-1], GET + b"\r\n")
        assert answer(idle[-1]).text == "ok"
    lines = [record for record in caplog.records if "all connections are in use" in record.message]
    assert len(lines) == 1 and "max_connections 8" in lines[0].message


def test_half_a_head_is_no_reason_to_keep_a_connection(small: Loopback) -> None:
    with ExitStack() as stack:
        half = [stack.enter_context(small.connect()) for _ in range(20 * SIZE)]
        for connection in half:
            send(connection, GET)
        for _ in range(5):
            refusal(small.send(b"GET /nowhere HTTP/1.1\r\n\r\n"), 404, "NOT_FOUND")


def test_health_routes_answer_while_requests_are_in_progress_on_all_connections(small: Loopback) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(small.connect()) for _ in range(SIZE)]

        def keep_busy() -> None:
            for connection in busy:
                send(connection, b"4000\r\n" + b" " * 0x4000 + b"\r\n")

        for connection in busy:
            send(connection, HEAD + CHUNKED)
        assert eventually(lambda: len(small.edge.seats._busy) == SIZE)
        for path in (b"/healthz", b"//livez", b"/readyz/"):
            keep_busy()
            assert small.send(b"GET %s HTTP/1.1\r\n\r\n" % path).text == "ok"
        keep_busy()
        for request in (
            HEAD + LENGTH + BODY,
            b"GET /v1/models HTTP/1.1\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\n\r\n",
        ):
            with small.connect() as connection:
                send(connection, request)
                assert "max_connections" in refusal(answer(connection), 503, "QUEUE_FULL")
                assert is_closed(connection)
        oldest, *_ = [stack.enter_context(small.connect()) for _ in range(SPARE + 1)]
        keep_busy()
        assert is_closed(oldest)
        assert small.get("/healthz").text == "ok"
        for connection in busy[:1]:  # a request that ends makes room
            send(connection, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
            assert "scores" in answer(connection).json()
        refusal(small.send(b"GET /nowhere HTTP/1.1\r\n\r\n"), 404, "NOT_FOUND")


def test_a_body_that_stalls_gives_way_to_another_client(small: Loopback) -> None:
    with ExitStack() as stack:
        stalled = [stack.enter_context(small.connect()) for _ in range(SIZE)]
        for connection in stalled:
            send(connection, HEAD + b"Content-Length: 100\r\n\r\n{")
        assert eventually(lambda: len(small.edge._candidates) == SIZE)
        assert small.send(HEAD + LENGTH + BODY).status_code == 200
        [ended] = select.select(stalled, [], [], 30)[0]
        refusal(answer(ended), 503, "QUEUE_FULL")
        assert is_closed(ended)


def test_a_budget_below_one_body_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="max_bodies_mb 4 is smaller than max_body_mb 64"):
        Edge(msgspec.structs.replace(FP32, max_bodies_mb=4), on_error=print)
