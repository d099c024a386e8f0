"""The access log: one line per request with route, cost and caller, and never a text, query, key or query string."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from sie_server.config import Secret
from sie_server.logs import FIELDS, PLAIN, JsonLines, OneLine
from support.servers.inprocess import asking

KEY = "infer-3f9a27c1d05b"
SECRETS = ("what burns", "stars-burn-hydrogen", KEY, "token-in-url", "wrong-key-94fe")
TEXTS = '{"items": [{"text": "stars-burn-hydrogen"}]}'
PAIR = '{"query": {"text": "what burns"}, "items": [{"text": "b"}]}'
INPUT = '{"model": "no/such", "input": "stars-burn-hydrogen"}'
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """Serve without models that load, because a log line needs none."""
    with asking({}, api_keys=Secret(f"search:infer:{KEY}")) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """Return the fields of the access lines so far, and check every line for secrets."""
    caplog.set_level(logging.INFO, "sie_server.access")

    class Found(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            return [getattr(r, FIELDS) for r in caplog.records if r.name == "sie_server.access"][index]

    yield Found()
    for form in (OneLine(PLAIN), JsonLines()):
        for record in caplog.records:
            assert not any(secret in form.format(record) for secret in SECRETS)


def test_a_request_is_one_line(client: TestClient, lines: Lines) -> None:
    body = {"query": "what burns", "documents": ["stars-burn-hydrogen", "b"], "model": "sie/mini-en"}
    answer = client.post("/v1/rerank?key=token-in-url", json=body, headers={"x-sie-request-id": "r-1"})
    assert answer.status_code == 200
    [line] = lines[:]
    ms = line.pop("ms")
    assert 0 < ms < 60_000
    assert line == {
        "method": "POST",
        "route": "/v1/rerank",
        "status": 200,
        "model": "sie/mini-en",
        "items": 2,
        "tokens": answer.json()["usage"]["total_tokens"],
        "bytes_in": int(answer.request.headers["content-length"]),
        "bytes_out": len(answer.content),
        "request_id": "r-1",
        "key": "search",
    }


def test_a_request_that_is_cancelled_was_left_by_its_caller(client: TestClient, lines: Lines) -> None:
    """Ray Serve cancels the request of a caller that disconnects."""

    async def cancel() -> None:
        reading = asyncio.Event()

        async def receive() -> Message:
            reading.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            raise AssertionError(message)

        headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/rerank",
            "headers": headers,
            "query_string": b"",
        }
        task = asyncio.create_task(client.app(scope, receive, send))  # type: ignore[arg-type]
        await reading.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    assert client.portal
    client.portal.call(cancel)
    [line] = lines[:]
    assert (line["route"], line["status"], line["bytes_out"]) == ("/v1/rerank", 499, 0)
    assert "sie_cancelled_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "body", "wanted"),
    [
        ("POST", "/v1/score/a/b", "{}", {"route": "/v1/score/{model}", "model": "a/b", "status": 400}),
        ("POST", "/v1/encode/a", TEXTS, {"route": "/v1/encode/{model}", "status": 404}),
        (
            "POST",
            "/v1/inspect/sie/mini-en",
            PAIR,
            {"route": "/v1/inspect/{model}", "items": 1, "status": 200},
        ),
        ("POST", "/v1/embeddings", INPUT, {"route": "/v1/embeddings", "model": "no/such", "status": 404}),
        ("GET", "/v1/models/sie/mini-en", "", {"route": "/v1/models/{model}", "model": "sie/mini-en"}),
        ("GET", "/docs/static/swagger-ui.css", "", {"route": "/docs/static/{name}", "status": 200}),
        ("GET", "/rerank?q=token-in-url", "", {"route": "/rerank", "status": 405}),
        ("GET", "/x%0Ay?q=token-in-url", "", {"path": "/x\ny", "status": 404}),
    ],
)
def test_the_route_is_a_template_and_the_status_that_of_the_response(
    client: TestClient, lines: Lines, method: str, path: str, body: str, wanted: dict[str, Any]
) -> None:
    client.request(method, path, content=body, headers={"content-type": "application/json"})
    [line] = lines[:]
    assert {name: line.get(name) for name in wanted} == wanted and ("path" in line) == ("path" in wanted)


def test_refused_callers_have_no_name(client: TestClient, lines: Lines) -> None:
    client.post("/v1/score/sie/mini-en", headers={"authorization": "Bearer wrong-key-94fe"}, json={})
    [line] = lines[:]
    assert (line["status"], line.get("key"), line.get("bytes_in")) == (401, None, None)


def test_probes_are_at_level_debug(
    client: TestClient, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/metrics", "/livez/"):
        client.get(path)
    assert lines[:] == []
    caplog.set_level(logging.DEBUG, "sie_server.access")
    client.get("/livez")
    assert [line["route"] for line in lines[:]] == ["/livez"]


def test_it_can_be_switched_off(lines: Lines) -> None:
    with asking({}, access_log=False) as client:
        assert client.get("/v1/models").status_code == 200
    assert lines[:] == []


def test_fields_cannot_imitate_other_fields_or_lines() -> None:
    record = logging.makeLogRecord(
        {"name": "x", "msg": "request", "levelname": "INFO", FIELDS: {"model": 'a" key=ops\nX', "key": None}}
    )
    line = OneLine(PLAIN).format(record)
    assert line.splitlines() == [line] and 'model="a\\" key=ops\\nX"' in line
    parsed = json.loads(JsonLines().format(record))
    assert (parsed["model"], parsed["message"], parsed["level"]) == ('a" key=ops\nX', "request", "info")


def test_json_lines_have_exceptions_in_a_field() -> None:
    try:
        raise ValueError("odd\nvalue")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.makeLogRecord({"name": "x", "msg": "%s failed\u2028", "args": ("a",), "exc_info": info})
    line = JsonLines().format(record)
    assert line.isascii() and line.splitlines() == [line]
    assert (
        json.loads(line)["message"] == "a failed\u2028" and "ValueError: odd" in json.loads(line)["exception"]
    )
