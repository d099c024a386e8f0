"""Traces of requests, as an OpenTelemetry collector receives them."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from sie_server import __version__
from sie_server.api.tracing import tracer
from sie_server.api.tracing.tracer import open_tracer
from sie_server.logs import FIELDS
from support.servers.collector import Collector, Span, attributes, collecting
from support.servers.loopback import Loopback, listening
from support.waiting import eventually

MODEL = "sie/mini-en"
SECRETS = ("volcanoes-erupt", "magma-rises", "tectonic-plates", "key-94fe21c7d0ab")
PAIR = {"query": {"text": SECRETS[0]}, "items": [{"text": SECRETS[1]}, {"text": SECRETS[2]}]}
STEPS = [
    "authenticate",
    "decode",
    "lease",
    "tokenize",
    "queue",
    "pack",
    "forward",
    "read_out",
    "rank",
    "encode",
]
SERVER = 2  # kind of a span
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[Loopback]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with listening() as it:
            yield it


def post(server: Loopback, path: str, body: object, **headers: str) -> httpx.Response:
    sent = {"accept": "application/json", "authorization": f"Bearer {SECRETS[3]}", **headers}
    return httpx.post(server.base_url + path, json=body, headers=sent, timeout=60, verify=False)


def spans_of(collector: Collector, response: httpx.Response) -> dict[str, list[Span]]:
    """Return the spans of a request, when the collector has its first."""
    trace_id = response.headers["x-trace-id"]
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    assert eventually(
        lambda: any(span.kind == SERVER for span in collector.spans if span.trace_id.hex() == trace_id)
    )
    return collector.trace(trace_id)


def test_a_request_has_a_span_per_step_in_order(server: Loopback, collector: Collector) -> None:
    response = post(server, f"/v1/score/{MODEL}", PAIR)
    assert response.status_code == 200
    spans = spans_of(collector, response)
    [root] = spans.pop("POST /v1/score/{model}")
    assert root.kind == SERVER and not root.parent_span_id
    assert sorted(spans) == sorted(STEPS)
    in_order = [spans[name][0] for name in STEPS]
    for span in in_order:
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano - 2e6 <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano + 2e6  # two clocks
    starts = [span.start_time_unix_nano for span in in_order]
    assert starts == sorted(starts)


def test_a_span_has_the_figures_of_its_request(server: Loopback, collector: Collector) -> None:
    response = post(server, f"/v1/score/{MODEL}", PAIR, **{"x-sie-request-id": "r-1"})
    spans = spans_of(collector, response)
    found = attributes(spans["POST /v1/score/{model}"][0])
    assert found.pop("sie.queue_seconds") == pytest.approx(
        float(response.headers["x-queue-time"]) / 1e3, abs=1e-4
    )
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/score/{model}",
        "http.response.status_code": 200,
        "sie.request_id": "r-1",
        "sie.model": MODEL,
        "sie.items": 2,
        "sie.tokens": response.json()["usage"]["input_tokens"],
    }
    batch = attributes(spans["forward"][0])
    assert batch["sie.batch.requests"] == 1 and batch["sie.batch.tokens"] > 0
    resource = attributes(collector.exports[-1].resource_spans[0].resource)
    assert resource["service.name"] == "sie-server" and resource["service.version"] == __version__
    assert resource["deployment.environment"] == "test"
    path, headers = collector.requests[-1]
    assert path == "/v1/traces" and headers["x-tenant"] == "blue"


def test_the_callers_trace_is_continued(server: Loopback, collector: Collector) -> None:
    response = post(server, f"/v1/score/{MODEL}", PAIR, traceparent=CALLER, tracestate="vendor=1")
    assert response.headers["x-trace-id"] == CALLER.split("-")[1]
    [root] = spans_of(collector, response)["POST /v1/score/{model}"]
    assert root.parent_span_id.hex() == CALLER.split("-")[2] and root.trace_state == "vendor=1"


@pytest.mark.parametrize(
    "wrong", ["", "00-0-0-01", "ff" + CALLER[2:], CALLER.replace("0af765", "xyzxyz"), "x" * 9000]
)
def test_a_trace_that_is_none_is_not_continued(server: Loopback, wrong: str) -> None:
    response = post(server, f"/v1/score/{MODEL}", PAIR, traceparent=wrong)
    assert response.status_code == 200
    assert response.headers["x-trace-id"] != CALLER.split("-")[1]


def test_several_contexts_are_none(server: Loopback) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + 2 * f"traceparent: {CALLER}\r\n".encode()
    assert server.send(head + b"\r\n").headers["x-trace-id"] != CALLER.split("-")[1]


def test_the_access_log_names_the_trace(server: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sie_server.access")
    trace_id = server.get("/v1/models").headers["x-trace-id"]
    assert eventually(lambda: len(caplog.records) > 0)
    assert [getattr(record, FIELDS)["trace_id"] for record in caplog.records] == [trace_id]


def test_a_caller_that_does_not_sample_is_not_traced(server: Loopback, collector: Collector) -> None:
    sent = CALLER.replace("0af7651916cd43dd", "1111111111111111")[:-1] + "0"
    response = post(server, f"/v1/score/{MODEL}", PAIR, traceparent=sent)
    assert response.status_code == 200 and "x-trace-id" not in response.headers
    spans_of(collector, post(server, f"/v1/score/{MODEL}", PAIR))  # later spans have arrived
    assert not collector.trace(sent.split("-")[1])


ROUTES = {
    "/v1/rerank": {"model": MODEL, "query": SECRETS[0], "documents": [SECRETS[1]]},
    "/rerank": {"query": SECRETS[0], "texts": [SECRETS[1]], "model": MODEL},
    "/v1/inspect/sie/mini-en": PAIR,
    "/v1/encode/sie/mini-en": {"items": PAIR["items"]},
}
READ = STEPS[:4]  # without the device
STEPS_OF = {"/v1/inspect/sie/mini-en": READ, "/v1/encode/sie/mini-en": [*STEPS[:8], "assemble", "encode"]}


@pytest.mark.parametrize("path", ROUTES)
def test_other_routes_have_their_steps(server: Loopback, collector: Collector, path: str) -> None:
    spans = spans_of(collector, post(server, path, ROUTES[path]))
    route = path.replace(MODEL, "{model}")
    assert attributes(spans.pop(f"POST {route}")[0])["sie.model"] == MODEL
    assert sorted(spans) == sorted(STEPS_OF.get(path, STEPS))


ERRORS = {
    "INVALID_INPUT": (f"/v1/score/{MODEL}", {"query": SECRETS[0]}, "POST /v1/score/{model}", 0),
    "MODEL_NOT_FOUND": (f"/v1/score/no/{SECRETS[2][:3]}", PAIR, "POST /v1/score/{model}", 0),
    "NOT_FOUND": ("/no/such", {}, "POST (no route)", 0),
    "MODEL_LOAD_FAILED": ("/v1/score/BAAI/bge-m3", PAIR, "POST /v1/score/{model}", 2),
}


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_has_its_code_and_the_steps_so_far(
    server: Loopback, collector: Collector, code: str
) -> None:
    path, body, name, status = ERRORS[code]
    response = post(server, path, body)
    spans = spans_of(collector, response)
    [root] = spans.pop(name)
    assert attributes(root)["error.type"] == code == response.headers["x-sie-error-code"]
    assert root.status.code == status  # an error of the caller is none of the server
    assert "encode" not in spans and "authenticate" in spans


def test_probes_and_scrapes_are_not_traced(server: Loopback) -> None:
    for path in ("/healthz", "/metrics", "/readyz"):
        assert "x-trace-id" not in server.get(path).headers
    assert "x-trace-id" in server.get("/v1/models").headers


def test_spans_never_contain_texts_or_keys(server: Loopback, collector: Collector) -> None:
    post(server, "/v1/rerank?query=tectonic-plates", ROUTES["/v1/rerank"])
    spans_of(collector, post(server, f"/v1/score/{MODEL}", PAIR))
    assert len(collector.spans) > 10
    for body in collector.bodies:
        assert not [secret for secret in SECRETS if secret.encode() in body]


# ── collectors that fail ──


def refusing() -> str:
    """Return the URL of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("dead", ["refuses", "hangs"])
def test_a_dead_collector_delays_and_fails_nothing(
    dead: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as silent:
        silent.hold = threading.Event()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent.url if dead == "hangs" else refusing())
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
        monkeypatch.setattr(tracer, "CLOSE_S", 0.2)
        with listening() as server:
            times = []
            for _ in range(9):  # more spans than the queue has room for
                started = time.perf_counter()
                assert post(server, f"/v1/score/{MODEL}", PAIR).status_code == 200
                times.append(time.perf_counter() - started)
            ended = time.perf_counter()
        assert sorted(times)[4] < 1  # an export gives up after 10 s
        assert time.perf_counter() - ended < 10


# ── the variables ──

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
OFF = {
    "no variable": {},
    "other variables only": {"OTEL_SERVICE_NAME": "rerank", "OTEL_TRACES_EXPORTER": "otlp"},
    "disabled": {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
    "no exporter": {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    "an empty endpoint": {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
}
WRONG = {
    "OTEL_TRACES_EXPORTER is 'zipkin'": {**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin"},
    "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'": {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL": {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not a URL": {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:b:c/"
    },
}


@pytest.mark.parametrize("name", OFF)
def test_without_an_endpoint_nothing_is_traced(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracer(OFF[name]) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("sampler", "argument", "traced"), [("always_off", "", 0), ("traceidratio", "0.5", 100)]
)
def test_the_sampler_is_that_of_the_variables(
    sampler: str, argument: str, traced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    monkeypatch.setattr(tracer, "CLOSE_S", 0.0)
    found = open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert found is not None
    count = sum(found.begin({}).is_recording() for _ in range(200))
    found.close()
    assert abs(count - traced) < 50


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_logged_and_the_server_starts(message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracer(WRONG[message]) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING and f"no traces are sent: {message}" in record.getMessage()


def test_the_log_names_the_endpoint_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@127.0.0.1:9/"})
    assert found is not None
    found.close()
    assert "http://127.0.0.1:9" in caplog.text and "secret" not in caplog.text


def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None
    )
    assert open_tracer(ENDPOINT) is None
    assert "sie-server[otel]" in caplog.text
