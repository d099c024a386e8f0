"""Health probes of other servers answer as those servers do, while models load, when ready, and during shutdown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from sie_server import __version__
from sie_server.api.app import create_app
from sie_server.api.edge.paths import HEALTH, LIVENESS, READINESS
from sie_server.config import Secret, ServerConfig
from sie_server.serving.service import Service
from support.waiting import eventually

KEY = "0123456789abcdef"
NIM = {"/v1/health/live": "live", "/v1/health/ready": "ready"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    config = ServerConfig(device="cpu", model=(), offline=True, api_keys=Secret(KEY))
    with TestClient(create_app(config, Service)) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_every_probe_answers_without_a_key_when_ready(client: TestClient) -> None:
    for path in HEALTH:
        for spelling in (path, f"{path}/"):
            assert client.get(spelling).status_code == (204 if "well-known" in path else 200), spelling
        assert client.head(path).status_code < 300


def test_bodies_are_those_that_clients_read(client: TestClient) -> None:
    for prefix in (
        "",
        "/infinity",
        "/tei",
        "/vllm",
    ):  # a base URL that ends with a prefix, and the client's own path
        health = client.get(f"{prefix}/health").json()
        assert health["status"] == "ok" and isinstance(health["unix"], float)
    for path, word in NIM.items():
        for prefix in ("", "/nim"):
            expected = {"object": "health.response", "message": word, word: True}
            assert client.get(prefix + path).json() == expected
    assert client.get("/.well-known/ready").content == b""
    assert client.get("/ping").text == "ok"


@pytest.mark.parametrize("attribute", ["ready", "draining"])
def test_only_readiness_fails_while_loading_and_during_shutdown(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    state = client.app.state._state  # type: ignore[attr-defined]
    monkeypatch.setitem(state, attribute, not state[attribute])
    for path in LIVENESS:
        assert client.get(path).status_code < 300, path
    for path in READINESS:
        assert client.get(path).status_code == 503 and "not ready" in client.get(path).text, path
    assert client.get("/v1/health/ready").json()["ready"] is False
    assert client.get("/health").json()["error"]["type"] == "unavailable_error"


def test_a_dead_device_fails_every_probe(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service.worker.health, "dead", True)
    for path in HEALTH:
        answer = client.get(path)
        assert answer.status_code == 503 and "the device thread has failed" in answer.text, path


def test_information_needs_a_key(client: TestClient) -> None:
    for path in ("/version", "/meta", "/weaviate/meta"):
        assert client.get(path).status_code == 401
        answer = client.get(path, headers={"authorization": f"Bearer {KEY}"})
        assert answer.json()["version"] == __version__
