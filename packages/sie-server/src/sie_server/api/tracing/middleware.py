"""The middleware that traces requests. It is only added if tracing is configured.

Spans have the route, the model, counts and times of a request, and never its texts, its query or its keys.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sie_server.api.edge.access import PROBES, RouteNames
from sie_server.api.tracing.tracer import Tracer
from sie_server.engine.steps import Step, Value
from sie_server.errors import cut
from sie_server.serving.metrics import RequestTiming

TRACE_ID = "X-Trace-ID"
BEFORE_ENCODING = ("rank", "assemble")  # the steps whose result is then encoded


class Traced:
    """Continues the caller's trace, or begins one, and names it in the response."""

    def __init__(self, app: ASGIApp, tracer: Tracer, names: RouteNames) -> None:
        self._app, self._tracer, self._names = app, tracer, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        span = self._tracer.begin(_context_of(scope))
        if not span.is_recording():
            await self._app(scope, receive, send)
            return
        steps: list[Step] = []
        trace_id = f"{span.get_span_context().trace_id:032x}"
        scope.setdefault("state", {}).update(steps=steps, trace_id=trace_id)
        status, code = 500, ""

        async def send_traced(message: Message) -> None:
            nonlocal status, code
            if message["type"] == "http.response.start":
                if steps and steps[-1].name in BEFORE_ENCODING:
                    steps.append(Step("encode", steps[-1].ended, time.perf_counter(), {}))
                status = message["status"]
                response = MutableHeaders(raw=message["headers"])
                response[TRACE_ID] = trace_id
                code = response.get("x-sie-error-code", "")
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        finally:
            route = self._names.of(scope)
            attributes = _attributes(scope, status, code, route)
            name = f"{scope['method']} {route or '(no route)'}"
            self._tracer.end(span, name, attributes, steps, failed=status >= 500)


def _context_of(scope: Scope) -> dict[str, str]:
    """Return the headers of the caller's trace. More than one `traceparent` is none (W3C Trace Context, 3.2.1)."""
    parents, states = _headers(scope, "traceparent"), _headers(scope, "tracestate")
    return {"traceparent": parents[0], "tracestate": ",".join(states)} if len(parents) == 1 else {}


def _headers(scope: Scope, name: str) -> list[str]:
    return Headers(scope=scope).getlist(name)


def _attributes(scope: Scope, status: int, code: str, route: str | None) -> dict[str, Value]:
    """Return the attributes of a request. Names without `sie.` are those of OpenTelemetry's conventions for HTTP."""
    state = scope["state"]
    timing: RequestTiming = state["timing"]
    model = state.get("model") or scope.get("path_params", {}).get("model")
    known: dict[str, Value | None] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status,
        "error.type": code or None,
        "sie.request_id": state["request_id"],
        "sie.model": cut(model) if model else None,
        "sie.items": timing.items,
        "sie.tokens": timing.tokens,
        "sie.queue_seconds": timing.queue_ms / 1e3,
    }
    return {name: value for name, value in known.items() if value is not None}
