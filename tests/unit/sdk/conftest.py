"""Fixtures: both clients behind one interface, and a real HTTP server on a loopback port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import sie_sdk.client
from sie_sdk import SIEAsyncClient, SIEClient
from sie_sdk.codec import encode_body


class Either:
    """Calls a method of the sync or the async client the same way, so that every test runs against both."""

    def __init__(self, kind: str, *args: Any, **settings: Any) -> None:
        self.kind = kind
        self._runner = asyncio.Runner() if kind == "async" else None
        self.client = (SIEAsyncClient if kind == "async" else SIEClient)(*args, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        if self._runner is None:
            return method
        runner = self._runner
        return lambda *args, **params: runner.run(method(*args, **params), context=copy_context())

    def shut(self) -> None:
        self.__getattr__("close")()
        if self._runner is not None:
            self._runner.close()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SIE_BASE_URL",
        "SIE_API_KEY",
        "SIE_TIMEOUT",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Either]]:
    """`connect(handler, **settings)`: a client whose network is `handler(httpx.Request) -> httpx.Response`.

    `connect(None, url, …)` uses the real network.
    """
    opened: list[Either] = []

    def build(
        handler: Callable[[httpx.Request], httpx.Response] | None, *args: Any, **settings: Any
    ) -> Either:
        if handler is not None:
            settings["transport"] = httpx.MockTransport(handler)
        opened.append(Either(request.param, *args, **settings))
        return opened[-1]

    yield build
    for client in opened:
        client.shut()


def packed(value: Any, status: int = 200, **headers: str) -> httpx.Response:
    """Build a msgpack response; keywords become headers: `x_sie_request_id="r"`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.Response(
        status, content=encode_body(value), headers={"content-type": "application/msgpack"} | named
    )


@pytest.fixture
def answer() -> Callable[..., httpx.Response]:
    return packed


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the seconds that clients would sleep, without sleeping."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(sie_sdk.client, "time", SimpleNamespace(**vars(time) | {"sleep": slept.append}))
    monkeypatch.setattr(asyncio, "sleep", sleep)  # the client imports it inside the function
    return slept


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # the default of 5 makes a burst of connections wait a second

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.closed = threading.Semaphore(0)  # released for every closed connection

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed.release()


class Loopback:
    """A server that runs one function on the raw handler, and records the requests that reach it."""

    def __init__(self, behave: Callable[[BaseHTTPRequestHandler, int], None]) -> None:
        self.seen: list[tuple[str, str, bytes]] = []  # method, raw path, body
        self.leave = threading.Event()  # set at the end of the test, so that a blocked handler ends
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                self.sie_body = body
                outer.seen.append((self.command, self.path, body))
                behave(self, len(outer.seen))

            do_GET = do_POST = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.closed = self._server.closed
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.leave.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def loopback() -> Iterator[Callable[..., Loopback]]:
    running: list[Loopback] = []

    def start(behave: Callable[[BaseHTTPRequestHandler, int], None]) -> Loopback:
        running.append(Loopback(behave))
        return running[-1]

    yield start
    for server in running:
        server.close()
