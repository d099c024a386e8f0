"""The application in this process, called through ASGI without an HTTP library: thousands of requests a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette

from sie_server.api.app import create_app
from sie_server.serving.service import Service
from support.hostile.scale import STALL_S
from support.hostile.wire import Answer
from support.servers.inprocess import FP32
from support.waiting import until


@dataclass
class Application:
    """An app that runs while its loop does."""

    app: Starlette
    loop: asyncio.AbstractEventLoop

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Return the answer to one request; exceptions of the app pass through.

        Raises:
            TimeoutError: no answer within `STALL_S` seconds.
        """
        return self.loop.run_until_complete(
            asyncio.wait_for(self._call(method, path, headers, body), STALL_S)
        )

    async def _call(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        sent: list[Any] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if not waiting:
                await asyncio.Event().wait()  # the client stays connected
            return waiting.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope(method, path, headers, len(body)), receive, send)
        start = sent[0]
        names = {name.decode().lower(): value.decode("latin-1") for name, value in start["headers"]}
        return Answer(start["status"], names, b"".join(m.get("body", b"") for m in sent[1:]))


def scope(method: str, path: str, headers: dict[str, str], length: int) -> dict[str, Any]:
    """Return what uvicorn passes for a request; `path` may have percent escapes and a query."""
    raw, _, query = path.partition("?")
    pairs = {"host": "localhost", "content-length": str(length), **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw),
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }


@contextmanager
def application(models: dict[str, Path], **config: Any) -> Iterator[Application]:
    """Yield an app with these models loaded."""
    named = tuple(f"{name}={path}" for name, path in models.items())
    app = create_app(msgspec.structs.replace(FP32, model=named, **config), Service)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        lifespan = app.router.lifespan_context(app)
        loop.run_until_complete(lifespan.__aenter__())
        try:
            loop.run_until_complete(until(lambda: app.state.ready, 60))
            yield Application(app, loop)
        finally:
            loop.run_until_complete(lifespan.__aexit__(None, None, None))
