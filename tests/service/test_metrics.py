"""The metrics of a server after traffic: those that dashboards, alerts and autoscaling read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from sie_server import __version__
from sie_server.cli.remote import Remote
from sie_server.cli.top.command import Watch
from support.servers.loopback import Loopback, listening
from support.waiting import eventually

MODEL = "sie/mini-en"
BODY = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}, {"text": "stars"}]}
GET = b"GET /healthz HTTP/1.1\r\n"
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with listening(cors_origins=("https://a.example",), header_timeout_s=0.5) as it:
        assert it.post(f"/v1/score/{MODEL}", BODY).status_code == 200
        yield it


def sample(server: Loopback, name: str, **labels: str) -> float:
    """Return one sample, or 0 if it does not exist."""
    for line in server.send(SCRAPE).text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) == labels:
            return float(found[2])
    return 0.0


def preflight(server: Loopback) -> int:
    head = b"OPTIONS /v1/rerank HTTP/1.1\r\nHost: a\r\nOrigin: https://b.example\r\n"
    return server.send(head + b"Access-Control-Request-Method: POST\r\n\r\n").status_code


ERRORS = {
    "INVALID_INPUT": lambda server: server.post(f"/v1/score/{MODEL}", {}).status_code,
    "MODEL_NOT_FOUND": lambda server: server.post("/v1/score/no/such", BODY).status_code,
    "NOT_FOUND": lambda server: server.get("/no/such").status_code,
    "METHOD_NOT_ALLOWED": lambda server: server.get("/v1/rerank").status_code,
    "HEADERS_TOO_LARGE": lambda server: server.send(GET + b"a: b\r\n" * 201 + b"\r\n").status_code,
    "REQUEST_TIMEOUT": lambda server: server.send(GET).status_code,
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors_are_counted_by_code(server: Loopback, code: str) -> None:
    before = sample(server, "sie_errors_total", code=code)
    assert ERRORS[code](server) >= 400
    assert sample(server, "sie_errors_total", code=code) == before + 1


@pytest.mark.parametrize(
    "cause", [preflight, lambda server: server.send(b"\x16\x03\x01\r\n\r\n").status_code]
)
def test_errors_outside_the_application_are_counted(
    server: Loopback, cause: Callable[[Loopback], int]
) -> None:
    """A refused preflight, and bytes that are not HTTP."""
    before = sample(server, "sie_errors_total", code="INVALID_INPUT")
    assert cause(server) == 400
    assert sample(server, "sie_errors_total", code="INVALID_INPUT") == before + 1


def test_every_code_has_a_sample_before_the_first_error(server: Loopback) -> None:
    text = server.get("/metrics").text
    assert 'sie_errors_total{code="QUEUE_FULL"} 0.0' in text and 'code="INFERENCE_ERROR"} 0.0' in text


def test_stages_belong_to_a_route_and_to_requests_that_succeeded(server: Loopback) -> None:
    labels = {"route": "v1/rerank", "stage": "inference"}
    before = sample(server, "sie_stage_seconds_count", **labels)
    body = {"model": MODEL, "query": "rain", "documents": ["rain falls", "stars"]}
    assert server.post("/v1/rerank", body).status_code == 200
    assert server.post("/v1/rerank", {**body, "documents": 1}).status_code == 400
    assert sample(server, "sie_stage_seconds_count", **labels) == before + 1
    assert sample(server, "sie_stage_seconds_sum", **labels) > 0


def test_batches_have_tokens_a_fill_and_a_duration(server: Loopback) -> None:
    names = ("sie_batch_tokens", "sie_batch_fill_ratio", "sie_batch_seconds")
    before = [sample(server, f"{name}_{part}") for name in names for part in ("count", "sum")]
    texts = [{"text": f"text number {i}"} for i in range(20)]
    assert server.post(f"/v1/score/{MODEL}", {**BODY, "items": texts}).status_code == 200
    after = [sample(server, f"{name}_{part}") for name in names for part in ("count", "sum")]
    batches, tokens, fills, fill, _, seconds = (b - a for a, b in zip(before, after, strict=True))
    assert batches == fills > 0
    assert fill == pytest.approx(tokens / 2048)  # batch_tokens of this server
    assert 0 < seconds < 60


def test_an_idle_server_has_nothing_in_flight(server: Loopback) -> None:
    assert eventually(lambda: sample(server, "sie_requests_in_flight") == 0)
    assert sample(server, "sie_queue_seconds") == 0
    assert sample(server, "sie_build_info", version=__version__) == 1


def test_top_shows_the_figures_of_this_server(server: Loopback) -> None:
    assert server.post(f"/v1/score/{MODEL}", {}).status_code == 400
    watch = Watch(Remote(server.base_url))
    watch.look()
    assert server.post(f"/v1/score/{MODEL}", BODY).status_code == 200
    found = {section.title: {row[0]: row[1:] for row in section.rows} for section in watch.look()}
    assert found["server"]["version"] == (__version__,) and float(found["server"]["requests/s"][0]) > 0
    requests, *times = found["routes"]["score"]
    assert float(requests) > 0 and "-" not in times
    assert found["models"][MODEL][0] == "loaded" and found["errors"]["INVALID_INPUT"][1] != "0"
