"""The ASGI application: routes, lifespan, request ids and the error handler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_server import __version__
from sie_server.api import admin, dialects, probes, routes, visible
from sie_server.api.codec import JSON
from sie_server.api.dialects.dialect import WARNINGS, warning_header
from sie_server.api.dialects.routes import ROUTES as DIALECTS
from sie_server.api.edge.access import AccessLog, RouteNames
from sie_server.api.edge.connections.answers import body_of, headers_of, last_resort
from sie_server.api.edge.cors import Cors, check_origins
from sie_server.api.edge.gate import Gate
from sie_server.api.edge.limits.account import Accounts
from sie_server.api.edge.limits.metrics import KeyCollector
from sie_server.api.edge.limits.middleware import LimitedKeys
from sie_server.api.edge.limits.pacing import delay_refusal
from sie_server.api.edge.paths import CleanPath, check_prefix, is_browsing, route_meant
from sie_server.api.embeddings.routes import ROUTES as EMBEDDINGS
from sie_server.api.pages import playground
from sie_server.api.reading import BodyThreads
from sie_server.api.tracing.middleware import Traced
from sie_server.api.tracing.tracer import open_tracer
from sie_server.config import ServerConfig
from sie_server.errors import (
    ClientGone,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    SIEError,
    cut,
    no_memory,
    out_of_memory,
)
from sie_server.keys import read_keys
from sie_server.serving.backend import Backend, OnDeath, OpenBackend
from sie_server.serving.metrics import RequestTiming

log = logging.getLogger("sie_server.api")
OnReady = Callable[[list[str]], None]
SHUTTING_DOWN = QueueFull("the server is shutting down; try again", retry_after_s=1)
ALSO_EMBEDDINGS = ("/embeddings", "/infinity/embeddings")
COUNTED = ("score", "encode", "inspect", "embeddings")  # routes in the metrics, in addition to the dialects
PLACEMENT = ("x-sie-pool", "x-sie-machine-profile")  # headers that a cluster reads
REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")  # visible ASCII


def create_app(
    config: ServerConfig,
    open_backend: OpenBackend,
    on_fatal: OnDeath | None = None,
    on_ready: OnReady | None = None,
) -> Starlette:
    """Create the ASGI app. `open_backend` creates the service when the app starts: `Service`, or one that is remote.

    `on_ready` is called with the ids of the models named at start, once they are loaded.

    `on_fatal` is called when a model named at start cannot be loaded, or when the device thread fails. The server
    cannot serve after that.

    Raises:
        ConfigError: API keys, origins or the prefix of paths are invalid.
    """
    check_origins(config.cors_origins)
    check_prefix(config.root_path)
    keys = read_keys(config)
    accounts = Accounts(keys)
    tracer = open_tracer(os.environ)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.service = service = open_backend(config, on_fatal)
        service.metrics.registry.register(KeyCollector(accounts))
        app.state.threads = threads = BodyThreads()
        preload = asyncio.create_task(_preload(app, service, on_fatal, on_ready))
        yield
        preload.cancel()
        threads.close()
        await service.close()
        if tracer:
            await asyncio.to_thread(tracer.close)

    app = Starlette(
        routes=_routes(config),
        exception_handlers={SIEError: on_error, HTTPException: on_error, Exception: last_resort},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # an unknown route must be a 404 with an error body
    app.state.ready = False
    app.state.draining = False
    app.state.gate = Gate(keys, open_inference=config.open_inference, playground=config.playground)
    app.state.accounts = accounts
    names = RouteNames(app.routes)
    app.state.access_log = AccessLog(names) if config.access_log else None
    app.add_middleware(LimitedKeys, accounts=accounts)
    app.add_middleware(RequestFrame, state=app.state, gate=app.state.gate)
    if tracer:
        app.add_middleware(Traced, tracer=tracer, names=names)
    app.add_middleware(Cors, origins=config.cors_origins)
    app.add_middleware(CleanPath, prefix=config.root_path)  # the last one added is the outermost
    return app


def _routes(config: ServerConfig) -> list[Route]:
    return [
        Route("/v1/score/{model:path}", routes.score, methods=["POST"]),
        Route("/v1/encode/{model:path}", routes.encode, methods=["POST"]),
        Route("/v1/inspect/{model:path}", routes.inspect, methods=["POST"]),
        Route("/v1/models", routes.list_models),
        Route("/v1/models/{model:path}", routes.get_model),
        Route("/nim/v1/models", routes.list_rerankers),
        Route("/vllm/v1/models", routes.list_rerankers),
        *(playground.ROUTES if config.playground else ()),  # before a dialect's POST /
        *DIALECTS,
        *EMBEDDINGS,
        *admin.ROUTES,
        *probes.ROUTES,
        Route("/metrics", routes.metrics),
        Route("/openapi.json", routes.openapi_json),
        Route("/docs", routes.docs),
        Route("/docs/static/{name}", routes.docs_file),
    ]


async def _preload(
    app: Starlette, service: Backend, on_fatal: OnDeath | None, on_ready: OnReady | None
) -> None:
    try:
        await service.preload()
        app.state.ready = True
        if on_ready:
            on_ready(service.configured())
    except SIEError as error:
        if on_fatal:
            on_fatal(error)


async def on_error(request: Request, error: Exception) -> Response:
    """Convert an exception to an error response (docs/http-api.md#errors), in a dialect's form on its paths."""
    known = visible.error(request, _as_known(request, error))
    request.app.state.service.metrics.failed(known)
    if isinstance(known, QueueFull) and not request.app.state.draining:
        await delay_refusal(request, known.retry_after_s or 1)
    headers = headers_of(known)
    headers |= getattr(error, "headers", None) or {}  # Allow of a 405, WWW-Authenticate of a 401
    dialect = getattr(request.state, "dialect", None) or dialects.owner_of(request.scope["path"])
    body = msgspec.json.encode(dialect.write_error(known) if dialect else body_of(known))
    return Response(body, known.status, headers, media_type=JSON)


def _as_known(request: Request, error: Exception) -> SIEError:
    if isinstance(error, SIEError):
        return error
    path: str = request.scope["path"]  # unlike request.url, this does not depend on the header Host
    if isinstance(error, HTTPException) and error.status_code == 404:
        meant = route_meant(path, request.app.routes)
        return NotFound(
            f"no route {cut(path)}; " + (f"did you mean {meant}? See /docs" if meant else "see /docs")
        )
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed(f"{cut(request.method)} is not allowed on {cut(path)}")
    if out_of_memory(error):
        log.error("out of memory: %s", error or type(error).__name__)
        return no_memory()
    log.error("unexpected error", exc_info=error)
    return SIEError("internal error; see the server's log")


def _noted(headers: list[tuple[bytes, bytes]], request: Request) -> list[tuple[bytes, bytes]]:
    """Return headers whose X-SIE-Warnings include what `reading.read` reports about the body."""
    notes: list[str] = getattr(request.state, "notes", [])
    if not notes:
        return headers
    name = WARNINGS.lower().encode()
    written = [json.loads(value) for key, value in headers if key.lower() == name]
    merged = warning_header([*notes, *(each for warnings in written for each in warnings)])
    return [(k, v) for k, v in headers if k.lower() != name] + [(name, merged[WARNINGS].encode())]


def _route(path: str) -> str | None:
    """Return the `route` label of a path in the metrics; None if the path is not counted."""
    if (path := dialects.listed(path)) in dialects.PATHS:
        return path.removeprefix("/") or path
    if path in ALSO_EMBEDDINGS:
        return "embeddings"
    return next((name for name in COUNTED if f"{path}/".startswith(f"/v1/{name}/")), None)


class RequestFrame:
    """Middleware around every request: authorisation, request id, version header, metrics, log, shutdown."""

    def __init__(self, app: ASGIApp, state: object, gate: Gate) -> None:
        self._app, self._state, self._gate = app, state, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        timing = request.state.timing = RequestTiming(steps=getattr(request.state, "steps", None))
        sent_id = request.headers.get("x-sie-request-id", "")
        request_id = sent_id if REQUEST_ID.match(sent_id) else uuid.uuid4().hex
        request.state.request_id = timing.request_id = request_id
        timing.pool, timing.machine = (request.headers.get(name) or None for name in PLACEMENT)
        status, started, size = 500, False, 0

        async def send_framed(message: Message) -> None:
            nonlocal status, started, size
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                frame = {
                    b"x-sie-request-id": request_id.encode(),
                    b"x-sie-server-version": __version__.encode(),
                }
                if self._state.draining:  # type: ignore[attr-defined]
                    frame[b"connection"] = b"close"
                message["headers"] = [*_noted(message["headers"], request), *frame.items()]
            size += len(message.get("body", b""))
            await send(message)

        route = None if is_browsing(scope) else _route(scope["path"])
        in_flight = self._service.metrics.in_flight
        try:
            with in_flight.track_inprogress() if route else nullcontext():
                await self._refuse_or_run(scope, receive, send_framed)
        except (Exception, asyncio.CancelledError) as error:
            over = isinstance(error, asyncio.CancelledError)  # a shutdown has waited for `drain_s`
            gone = over and not self._state.draining  # type: ignore[attr-defined]
            if gone and not started:  # Ray Serve cancels the request of a caller that disconnects
                status = ClientGone.status
            if started or gone:
                raise  # the response has started, so the connection is closed instead
            answer = await on_error(request, SHUTTING_DOWN if over else error)  # type: ignore[arg-type]
            await answer(scope, receive, send_framed)
        finally:
            if route:
                self._count(route, scope, status, timing)
            if access := self._state.access_log:  # type: ignore[attr-defined]
                access.write(scope, status, size, timing)

    @property
    def _service(self) -> Backend:
        service: Backend = self._state.service  # type: ignore[attr-defined]
        return service

    async def _refuse_or_run(
        self, scope: Scope, receive: Receive, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if self._state.draining and scope["method"] == "POST":  # type: ignore[attr-defined]
            await (await on_error(Request(scope), SHUTTING_DOWN))(scope, receive, send)
        else:
            state = Request(scope).state
            state.caller = self._gate.admit(scope)  # before the body is read
            state.timing.step("authenticate", state.timing.started)
            await self._app(scope, receive, send)

    def _count(self, route: str, scope: Scope, status: int, timing: RequestTiming) -> None:
        path, service = scope["path"], self._service
        in_body = getattr(Request(scope).state, "model", None)  # embeddings and dialects
        model, _ = service.resolve(in_body or path.removeprefix(f"/v1/{route}/"))
        service.metrics.done(route, model, status, timing)
        if status == ClientGone.status:
            service.metrics.cancelled.inc()
