"""Both clients against a real HTTP server: failures that only a socket can cause."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgpack
import pytest

from sie_sdk import (
    Item,
    ProtocolError,
    SIEAsyncClient,
    SIEConnectionError,
    SIEError,
    SIETimeoutError,
    errors,
)
from sie_sdk.codec import encode_body

Connect = Callable[..., Any]
Start = Callable[..., Any]

SCORED = {"model": "org/name", "query_id": None, "scores": [{"item_id": "item-0", "score": 0.5, "rank": 0}]}


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def scored(handler: BaseHTTPRequestHandler, number: int) -> None:
    reply(handler, 200, encode_body(SCORED), Content_Type="application/msgpack")


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection with a TCP reset, without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()


def ask(client: Any, **params: Any) -> Any:
    return client.score("org/name", Item(text="q"), [Item(text="a")], **params)


def test_a_score_over_a_socket(connect: Connect, loopback: Start) -> None:
    server = loopback(scored)
    assert ask(connect(None, server.url)) == SCORED
    method, path, body = server.seen[0]
    assert (method, path) == ("POST", "/v1/score/org/name")
    assert msgpack.unpackb(body) == {"query": {"text": "q"}, "items": [{"text": "a"}]}


def test_escapes_arrive_as_they_were_sent(connect: Connect, loopback: Start) -> None:
    server = loopback(scored)
    connect(None, server.url).score("org/a b%2Fc", Item(text="q"), [Item(text="a")])
    assert server.seen[0][1] == "/v1/score/org/a%20b%252Fc"


def test_silence_is_a_timeout_and_is_not_retried(connect: Connect, loopback: Start) -> None:
    server = loopback(lambda handler, number: server.leave.wait(10))
    with pytest.raises(SIETimeoutError, match=server.url):
        ask(connect(None, server.url), timeout=0.3)
    assert len(server.seen) == 1


def test_silence_in_the_middle_of_the_answer_is_a_timeout(connect: Connect, loopback: Start) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        server.leave.wait(10)

    server = loopback(behave)
    with pytest.raises(SIETimeoutError):
        ask(connect(None, server.url), timeout=0.3)
    assert len(server.seen) == 1


def test_a_refused_connection_fails_soon_and_names_the_url(connect: Connect, pauses: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SIEConnectionError, match=f"cannot connect to {url}.*3 tries") as caught:
            ask(connect(None, url))
    assert len(pauses) == 2 and sum(pauses) < 2
    assert type(caught.value) is SIEConnectionError


def test_a_password_in_the_url_stays_out_of_the_message(connect: Connect) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SIEConnectionError, match=f"http://{host}") as caught:
            ask(connect(None, f"http://user:secret@{host}"))
    assert "secret" not in str(caught.value)


def test_a_reset_before_the_answer_is_tried_again(connect: Connect, loopback: Start) -> None:
    server = loopback(lambda handler, number: reset(handler) if number < 3 else scored(handler, number))
    assert ask(connect(None, server.url)) == SCORED
    assert len(server.seen) == 3


def test_a_connection_the_server_closed_while_idle_is_no_error(connect: Connect, loopback: Start) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int) -> None:
        scored(handler, number)
        handler.close_connection = True  # without announcing it by `Connection: close`

    server = loopback(behave)
    client = connect(None, server.url)
    for _ in range(3):
        assert ask(client) == SCORED
        assert server.closed.acquire(timeout=10)


def test_an_answer_that_breaks_off_each_time_is_reported(connect: Connect, loopback: Start) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(encode_body(SCORED))
        handler.close_connection = True

    server = loopback(behave)
    with pytest.raises(SIEConnectionError, match=r"broke off.*3 tries") as caught:
        ask(connect(None, server.url))
    assert not isinstance(caught.value, SIETimeoutError)
    assert len(server.seen) == 3


def test_another_program_on_the_port(connect: Connect, loopback: Start) -> None:
    server = loopback(lambda handler, number: reply(handler, 404, b"<h1>nothing here</h1>"))
    with pytest.raises(errors.RequestError, match=f"{server.url}/v1/score/org/name.*404.*nothing here"):
        ask(connect(None, server.url))


def test_a_redirect_is_not_followed_with_the_key(connect: Connect, loopback: Start) -> None:
    elsewhere = loopback(scored)
    server = loopback(
        lambda handler, number: reply(handler, 307, b"", Location=f"{elsewhere.url}/v1/score/org/name")
    )
    with pytest.raises(errors.ProtocolError, match=f"status 307 to {elsewhere.url}"):
        ask(connect(None, server.url, api_key="k"))
    assert elsewhere.seen == []


def test_many_calls_at_once_share_one_async_client(loopback: Start) -> None:
    all_there = threading.Barrier(20, timeout=10)  # times out if the calls run one after the other
    server = loopback(lambda handler, number: (all_there.wait(), scored(handler, number)))

    async def burst() -> list[Any]:
        async with SIEAsyncClient(server.url) as client:
            calls = (client.score("org/name", Item(text="q"), [Item(text="a")]) for _ in range(20))
            return await asyncio.gather(*calls)

    assert asyncio.run(burst()) == [SCORED] * 20


def test_a_cancelled_call_leaves_the_client_usable(loopback: Start) -> None:
    server = loopback(
        lambda handler, number: server.leave.wait(10) if number == 1 else scored(handler, number)
    )

    async def use() -> Any:
        async with SIEAsyncClient(server.url) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.score("org/name", Item(text="q"), [Item(text="a")]), 0.2)
            return await client.score("org/name", Item(text="q"), [Item(text="a")])

    assert asyncio.run(use()) == SCORED


MALFORMED = {
    "no HTTP": b"\x15\x03\x01\x00\x02\x02\x28\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc",
    "long head": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000 + b"\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_an_answer_that_is_no_http_is_reported_soon_by_a_client_that_has_had_one(
    connect: Connect, loopback: Start, pauses: list[float], answer: bytes
) -> None:
    """Such a server is not restarting, so the client does not wait for it until the deadline."""
    server = loopback(lambda handler, number: (handler.wfile.write(answer), handler.connection.close()))
    client = connect(None, server.url)
    client.client._connections.answered = True
    with pytest.raises(SIEConnectionError, match="gave up after 3 tries"):
        client.score("m", Item(text="q"), [Item(text="a")])


@pytest.mark.parametrize("status", [600, 999])
def test_a_status_that_no_program_sends_is_reported_at_once(
    connect: Connect, loopback: Start, status: int
) -> None:
    server = loopback(
        lambda handler, number: handler.wfile.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    )
    with pytest.raises(ProtocolError, match=f"status {status}"):
        connect(None, server.url).list_models()
    assert len(server.seen) == 1


def test_cookies_are_neither_read_nor_sent(connect: Connect, loopback: Start) -> None:
    """Callers of one client must not share a session, and a malformed cookie is no reason to fail."""
    sent: list[Any] = []

    def answer(handler: Any, number: int) -> None:
        sent.append(handler.headers["cookie"])
        handler.wfile.write(
            b'HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: \xff=;;=\r\nContent-Length: 14\r\n\r\n{"models": []}'
        )

    client = connect(None, loopback(answer).url)
    assert client.list_models() == client.list_models() == []
    assert sent == [None, None]


def test_a_compression_that_was_not_asked_for_is_refused(connect: Connect, loopback: Start) -> None:
    """A decoder may make gigabytes of one small piece; gzip and deflate make at most a thousand times as much."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nContent-Length: 4\r\n\r\nabcd"
    server = loopback(lambda handler, number: handler.wfile.write(head))
    with pytest.raises(ProtocolError, match="Content-Encoding 'zstd'"):
        connect(None, server.url).list_models()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSL_CERT_FILE", "/no/such/file"),
        ("HTTP_PROXY", "ftp://proxy"),
        ("ALL_PROXY", "http://proxy:port"),
    ],
)
def test_an_environment_in_which_no_connection_is_possible_is_named(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SIEError, match=name):
        connect(None, "http://127.0.0.1:1").list_models()


@pytest.mark.parametrize("host", ["ä" * 70, "xn--a", "[v1.a]"])
def test_a_host_that_has_no_form_on_the_wire_is_reported_at_once(connect: Connect, host: str) -> None:
    with pytest.raises(SIEConnectionError, match="could not be sent"):
        connect(None, f"http://{host}:1").list_models()
