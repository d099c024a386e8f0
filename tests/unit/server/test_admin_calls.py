"""A request that changes the state of a server is sent once, also if its connection ends in the middle."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from sie_server.cli.remote import Remote

Behave = Callable[[socket.socket], Any]
ENDS: dict[str, Behave] = {
    "closed": lambda peer: None,
    "reset": lambda peer: peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"),
    "half a head": lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-"),
    "half a body": lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"),
    "no HTTP": lambda peer: peer.sendall(b"\x15\x03\x01\r\n"),
    "proxy": lambda peer: peer.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\n<p>"),
    "full": lambda peer: peer.sendall(
        b"HTTP/1.1 503 X\r\nRetry-After: 1\r\nContent-Length: 68\r\n\r\n"
        + json.dumps({"error": {"code": "QUEUE_FULL", "message": "full, try again"}}).ljust(68).encode()
    ),
}


@pytest.fixture
def serve() -> Iterator[Callable[[Behave], tuple[str, list[bytes]]]]:
    """`serve(behave)`: the URL of a server that reads a request, behaves and hangs up; and the requests."""
    listeners: list[socket.socket] = []

    def start(behave: Behave) -> tuple[str, list[bytes]]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        seen: list[bytes] = []

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    data = b""
                    while b"}" not in data:
                        data += peer.recv(65536)
                    seen.append(data)
                    behave(peer)

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}", seen

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("behave", ENDS.values(), ids=ENDS)
def test_an_admin_request_is_sent_once(
    serve: Callable[[Behave], tuple[str, list[bytes]]], behave: Behave
) -> None:
    url, seen = serve(behave)
    with pytest.raises(click.ClickException) as raised:
        Remote(url).ask("/v1/admin/unload", {"model": "a"}, timeout=10)
    assert len(seen) == 1 and seen[0].startswith(b"POST /v1/admin/unload ")
    if behave in (ENDS["closed"], ENDS["reset"], ENDS["no HTTP"]):
        assert "the request may have been carried out" in raised.value.message


def test_a_request_that_was_not_sent_is_not_reported_as_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(click.ClickException, match="check that the server is running"):
        Remote(f"http://127.0.0.1:{port}").ask("/v1/admin/unload", {"model": "a"}, timeout=10)
