"""Configuration and export of traces.

The standard variables of OpenTelemetry configure everything (opentelemetry.io/docs/specs/otel/configuration and
…/protocol/exporter). An endpoint in them turns tracing on; nothing is sent without one. The libraries are the extra
`otel`. Mistakes in these variables are logged and never end the server, because platforms set them for all programs.
"""

from __future__ import annotations

import logging
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sie_server import __version__
from sie_server.engine.steps import Step, Value, wall_offset
from sie_server.errors import shown

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

log = logging.getLogger("sie_server.tracing")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
CLOSE_S = 2.0  # for the last spans; a collector that does not answer must not delay the end of the server
INSTALL = "pip install './packages/sie-server[otel]'"


def open_tracer(environment: Mapping[str, str]) -> Tracer | None:
    """Return the tracer that the variables configure; None: tracing is off."""
    endpoint = _first(environment, ENDPOINTS)
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if endpoint is None or off or exporter == "none":
        return None
    if problem := _problem(*endpoint, exporter, _first(environment, PROTOCOLS)):
        log.warning("no traces are sent: %s", problem)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces are sent: %s is set, and %s; %s", endpoint[0], error, INSTALL)
        return None
    log.info("traces are sent to %s", _without_secrets(endpoint[1]))
    return Tracer(BatchSpanProcessor(OTLPSpanExporter()))


def _first(environment: Mapping[str, str], names: Sequence[str]) -> tuple[str, str] | None:
    return next(((name, environment[name]) for name in names if environment.get(name)), None)


def _problem(name: str, endpoint: str, exporter: str, protocol: tuple[str, str] | None) -> str | None:
    """Return why spans cannot be sent as the variables say."""
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {shown(exporter)}; this server has otlp and none"
    if protocol and protocol[1] != PROTOCOL:
        return f"{protocol[0]} is {shown(protocol[1])}; this server has {PROTOCOL}, usually on port 4318"
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    return None if valid else f"{name} is not a URL of the form http://HOST:4318"


def _without_secrets(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class Tracer:
    """Begins and ends the spans of requests. Spans wait in a bounded queue and are sent by a thread of the library."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            _with_name({"service.version": __version__, "service.instance.id": _instance()})
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sie_server", __version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, carrier: Mapping[str, str]) -> Span:
        """Start the span of a request; `carrier` has the caller's `traceparent` and `tracestate`, if it sent them."""
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span("request", self._context.extract(carrier), SpanKind.SERVER)

    def end(
        self, span: Span, name: str, attributes: Mapping[str, Value], steps: Sequence[Step], *, failed: bool
    ) -> None:
        """End the span of a request, with one span below it per step. `failed`: it got an error of the server."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        span.update_name(name)
        span.set_attributes(dict(attributes))
        if failed:
            span.set_status(StatusCode.ERROR)
        offset = wall_offset()
        inside = set_span_in_context(span)
        for step in steps:
            start, end = (int((moment + offset) * 1e9) for moment in (step.started, step.ended))
            self._tracer.start_span(
                step.name, inside, attributes=dict(step.attributes), start_time=start
            ).end(end)
        span.end()

    def close(self) -> None:
        """Send the spans that wait, within `CLOSE_S`; the rest is lost."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(CLOSE_S)


def _with_name(attributes: dict[str, Any]) -> dict[str, Any]:
    """Add the default name, which OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES replace."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    return {"service.name": "sie-server", **attributes, **OTELResourceDetector().detect().attributes}


def _instance() -> str:
    return f"{socket.gethostname()}:{uuid.uuid4().hex[:8]}"
