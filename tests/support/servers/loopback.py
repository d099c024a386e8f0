"""The real application behind the real HTTP protocol, on a thread of the test process, and raw requests to it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import httpx
import msgspec
import uvicorn

from sie_server.api.app import create_app
from sie_server.api.edge.connections.edge import Edge
from sie_server.api.server import http_settings
from sie_server.serving.service import Service
from support.servers.inprocess import FP32
from support.waiting import eventually

WAIT_S = 30


class Loopback:
    """A server that listens on a port of the loopback interface."""

    def __init__(self, port: int, edge: Edge) -> None:
        self.port, self.edge = port, edge
        self.base_url = f"http://127.0.0.1:{port}"

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """Return a bare connection."""
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(WAIT_S)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def send(self, *parts: bytes) -> httpx.Response:
        """Send the parts on a new connection, as far as the server reads them, and return the response."""
        with self.connect() as connection:
            send(connection, *parts)
            return answer(connection)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.base_url + path, json=body, headers={"accept": "application/json"}, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.base_url + path, timeout=60)


@contextmanager
def listening(**config: Any) -> Iterator[Loopback]:
    """Serve with these settings on one thread until the end of the block."""
    settings = msgspec.structs.replace(FP32, **config)
    http_config = http_settings(settings, create_app(settings, Service))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(timeout_graceful_shutdown=1, **http_config))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert eventually(lambda: server.started)
        yield Loopback(listener.getsockname()[1], http_config["http"].keywords["edge"])
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
    assert not thread.is_alive()


def send(connection: socket.socket, *parts: bytes) -> bool:
    """Send all parts; return False if the server has closed the connection before the end."""
    try:
        for part in parts:
            connection.sendall(part)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


class _Reader(io.BufferedReader):
    """Keeps the bytes after a response for the next one: `http.client` would close the reader."""

    def close(self) -> None:
        pass


_readers: WeakKeyDictionary[socket.socket, _Reader] = WeakKeyDictionary()


class _Source:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, mode: str) -> _Reader:
        return reader_of(self._connection)


def reader_of(connection: socket.socket) -> _Reader:
    """Return the one buffered reader of a connection."""
    if connection not in _readers:
        _readers[connection] = _Reader(socket.SocketIO(connection, "r"))
    return _readers[connection]


def answer(connection: socket.socket, method: str = "GET") -> httpx.Response:
    """Read one response."""
    response = http.client.HTTPResponse(_Source(connection), method=method)  # type: ignore[arg-type]
    response.begin()
    return httpx.Response(response.status, headers=response.getheaders(), content=response.read())


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes the connection; return False if it sends anything."""
    try:
        return reader_of(connection).read(1) == b""
    except ConnectionResetError:
        return True


def refusal(response: httpx.Response, status: int, code: str) -> str:
    """Check an error response against the contract and return its message."""
    assert response.status_code == status, response.text
    body = json.loads(response.content)
    assert list(body) == ["detail", "error", "code"] and body["detail"] == body["error"]
    assert body["code"] == body["detail"]["code"] == response.headers["x-sie-error-code"] == code
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-sie-request-id"] and response.headers["x-sie-server-version"]
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
    message: str = body["detail"]["message"]
    return message
