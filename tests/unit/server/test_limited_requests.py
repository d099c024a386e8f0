"""Limits of API keys in the application: refusals before the body, charges after tokenising, usage, fair to others.

The limits of these keys refill in minutes, so every outcome depends on the number of requests alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from sie_sdk import Item, SIEAsyncClient, SIEClient, errors
from sie_server.api import dialects
from sie_server.api.edge.paths import HEALTH
from sie_server.cli.commands import cli
from sie_server.errors import RateLimited
from support.servers.inprocess import asking
from support.servers.loopback import Loopback, listening
from support.waiting import eventually

MINI = "sie/mini-en"
SCORE = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}
LONG: dict[str, Any] = {"query": {"text": "rain"}, "items": [{"text": "rain falls " * 100}]}
SECRET = "infer-3f9a27c1d05b"
LIMITS = {  # by the name of the key, one for each test that uses it up; none: the default
    "few": None,
    "models": None,
    "vendors": None,
    "slow": None,
    "spent": None,
    "tokens": "{tokens_per_minute = 100}",
    "single": "{concurrent_requests = 1}",
    "free": "{}",
    "other": "{}",
}


def key_table(name: str, more: str) -> str:
    return f'[[key]]\nname = "{name}"\nkey = "{SECRET}-{name}"\n{more}\n'


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    tables = [key_table(name, f"limits = {limits}" if limits else "") for name, limits in LIMITS.items()]
    default = "[limits]\nrequests_per_second = 0.01\nburst = 4\n"
    path.write_text(default + "".join(tables) + key_table("ops", "scopes = ['admin']"))
    return path


@pytest.fixture(scope="module")
def client(keys_file: Path) -> Iterator[TestClient]:
    with asking({}, api_keys_file=str(keys_file)) as client:
        yield client


def of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRET}-{name}"}


def score(client: TestClient, name: str, body: Any = SCORE) -> httpx.Response:
    return client.post(f"/v1/score/{MINI}", json=body, headers=of(name))


def limited(answer: httpx.Response) -> None:
    assert answer.status_code == 429, answer.text
    assert answer.headers["x-sie-error-code"] == "RATE_LIMITED"
    assert re.fullmatch("[1-9][0-9]*", answer.headers["retry-after"])
    assert ";r=0" in answer.headers["ratelimit"] and ";q=" in answer.headers["ratelimit-policy"]


def usage(client: TestClient, name: str) -> dict[str, Any]:
    answer = client.get("/v1/admin/keys", headers=of("ops"))
    assert answer.status_code == 200 and SECRET not in answer.text
    [found] = [key for key in answer.json()["keys"] if key["name"] == name]
    return dict(found)


def counted(client: TestClient, metric: str, **labels: str) -> float:
    text = client.get("/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return sum(s.value for s in samples if s.name == metric and labels.items() <= s.labels.items())


def test_one_key_over_its_limit_and_another_one_that_is_not(client: TestClient) -> None:
    answers = []
    for _ in range(12):
        answers.append(score(client, "few"))
        assert score(client, "free").status_code == 200
        assert score(client, "ops").status_code == 200
    assert [answer.status_code for answer in answers] == [200] * 4 + [429] * 8
    for answer in answers[4:]:
        limited(answer)
        assert answer.json()["error"] == answer.json()["detail"]
        assert "'few' has reached its limit requests_per_second = 0.01" in answer.json()["error"]["message"]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=4;w=400'
    assert answers[0].headers["ratelimit"].startswith('"requests";r=3;t=')
    assert "ratelimit" not in score(client, "free").headers
    tokens = answers[0].json()["usage"]["input_tokens"]
    few, free = usage(client, "few"), usage(client, "free")
    assert (few["requests"], few["tokens"], few["refused"]["requests"]) == (12, 4 * tokens, 8)
    assert few["requests_left"] == 0 and few["limits"]["burst"] == 4 and few["scopes"] == ["infer"]
    assert (free["requests"], free["tokens"]) == (13, 13 * tokens)
    assert counted(client, "sie_key_requests_total", key="few") == 12
    assert counted(client, "sie_key_requests_total", key="few", code_class="4xx") == 8
    assert counted(client, "sie_key_refused_total", key="few", reason="requests") == 8
    assert counted(client, "sie_key_refused_total", key="few") == 8
    assert counted(client, "sie_key_refused_total", key="free") == 0
    assert counted(client, "sie_key_tokens_total", key="free") == 13 * tokens


def test_health_and_admin_routes_have_no_limits(client: TestClient) -> None:
    for _ in range(5):
        score(client, "models")
    limited(client.get("/v1/models", headers=of("models")))
    for path in (*HEALTH, "/metrics", "/docs"):
        assert client.get(path, headers=of("models")).status_code not in (401, 429), path
    for _ in range(20):
        assert usage(client, "ops")["limits"]["requests_per_second"] is None
    assert client.get("/v1/admin/keys", headers=of("other")).status_code == 403


def test_tokens_are_charged_once_and_by_their_true_number(client: TestClient) -> None:
    first = score(client, "tokens")
    tokens = first.json()["usage"]["input_tokens"]
    assert first.headers["ratelimit-policy"] == '"tokens";q=100;qu="tokens";w=60'
    encode = {"items": LONG["items"], "params": {"output_types": ["multivector"]}}
    for path, body in ((f"/v1/score/{MINI}", LONG), (f"/v1/encode/{MINI}", encode)):
        large = client.post(path, json=body, headers=of("tokens"))
        assert large.status_code == 400 and large.json()["code"] == "INVALID_INPUT"
        assert "tokens_per_minute = 100, so it can never be served" in large.json()["error"]["message"]
    served = 1
    while (answer := score(client, "tokens")).status_code == 200:
        served += 1
    limited(answer)
    assert "tokens_per_minute = 100" in answer.json()["error"]["message"]
    found = usage(client, "tokens")
    assert found["tokens"] == served * tokens
    assert found["tokens_left"] < 1
    assert found["refused"] == {"requests": 0, "concurrent": 0, "tokens": 1, "too_large": 2}
    for path, body in (
        ("/v1/embeddings", {"model": MINI, "input": "rain"}),
        (f"/v1/encode/{MINI}", {"items": [{"text": "rain"}]}),
        ("/v2/rerank", {"model": MINI, "query": "rain", "documents": ["rain falls"]}),
    ):
        limited(client.post(path, json=body, headers=of("tokens")))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/rerank", {"model": MINI, "query": "rain", "documents": ["rain falls"]}),
        (f"/v1/encode/{MINI}", {"items": [{"text": "rain"}], "params": {"output_types": ["multivector"]}}),
    ],
)
def test_every_route_that_runs_a_model_charges_its_tokens(client: TestClient, path: str, body: Any) -> None:
    before = usage(client, "other")["tokens"]
    assert client.post(path, json=body, headers=of("other")).status_code == 200
    assert usage(client, "other")["tokens"] > before


def test_every_dialect_refuses_in_its_own_form(client: TestClient) -> None:
    for _ in range(4):
        client.get("/v1/models", headers=of("vendors"))
    for path, candidates in dialects.PATHS.items():
        answer = client.request(
            "GET" if path in ("/info", "/tei/info") else "POST",
            path.replace("{model}", MINI),
            content=b"not even JSON",
            headers=of("vendors"),
        )
        limited(answer)
        message = next(text for text in texts_of(answer.json()) if "requests_per_second = 0.01" in text)
        assert answer.json() == candidates[0].write_error(RateLimited(message)), path


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)
    elif isinstance(value, str):
        yield value


# ── over real connections ──


@pytest.fixture(scope="module")
def server(keys_file: Path) -> Iterator[Loopback]:
    with listening(api_keys_file=str(keys_file)) as server:
        yield server


def test_refused_before_the_body_is_read_and_concurrent_requests_are_counted(server: Loopback) -> None:
    head = (
        f"POST /v1/score/{MINI} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {SECRET}-single\r\nContent-Length: 50000000\r\n\r\n"
    )
    with server.connect() as one:
        one.sendall(head.encode() + b"{")  # this request never gets its body
        assert eventually(lambda: in_progress(server) == 1)
        answer = server.send(head.encode() + b"{")
        limited(answer)
        assert "'single' has reached its limit concurrent_requests = 1" in answer.text
    assert eventually(lambda: in_progress(server) == 0)  # the server has noticed that the client has left
    assert httpx.get(f"{server.base_url}/v1/models", headers=of("single")).status_code == 200


def in_progress(server: Loopback) -> int:
    listed = httpx.get(f"{server.base_url}/v1/admin/keys", headers=of("ops")).json()["keys"]
    return int(next(key["in_progress"] for key in listed if key["name"] == "single"))


async def test_our_clients_raise_at_once_if_they_cannot_wait(server: Loopback) -> None:
    """Waits within the deadline are tested without a server (tests/unit/sdk/test_flow.py)."""
    url, key = server.base_url, f"{SECRET}-slow"
    with SIEClient(url, api_key=key, deadline=5) as client:
        for _ in range(4):
            client.list_models()
        with pytest.raises(errors.RateLimitedError) as caught:
            client.score(MINI, Item(text="rain"), [Item(text="rain falls")])
    assert "gave up after 1 try" in str(caught.value) and caught.value.status == 429
    async with SIEAsyncClient(url, api_key=key, deadline=5) as later:
        with pytest.raises(errors.RateLimitedError, match="gave up after 1 try"):
            await later.score(MINI, Item(text="rain"), [Item(text="rain falls")])


def test_the_command_shows_the_use_of_keys(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIE_ADMIN_KEY", f"{SECRET}-ops")
    for _ in range(5):
        httpx.get(f"{server.base_url}/v1/models", headers=of("spent"))
    done = CliRunner().invoke(cli, ["admin", "keys", "--url", server.base_url])
    assert done.exit_code == 0, done.output
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in done.stdout.splitlines()}
    assert list(rows) == [*LIMITS, "ops"]
    assert rows["spent"] == ["infer", "5", "1", "0", "0", "0", "-"]
    assert rows["free"][-2:] == ["-", "-"]
    done = CliRunner().invoke(cli, ["admin", "keys", "--json", "--url", server.base_url])
    refused = {key["name"]: key["refused"]["requests"] for key in json.loads(done.stdout)}
    assert refused["spent"] == 1 and SECRET not in done.stdout
    monkeypatch.setenv("SIE_ADMIN_KEY", f"{SECRET}-few")
    assert (
        "lacks the scope 'admin'"
        in CliRunner().invoke(cli, ["admin", "keys", "--url", server.base_url]).output
    )
