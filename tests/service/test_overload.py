"""Deadlines, lanes and refusals over HTTP. tests/unit/server/test_admission.py has the policy under load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from sie_server.catalog import EMBEDDED
from sie_server.serving.service import Service
from support.servers.inprocess import asking
from support.waiting import eventually

SCORE, RERANK, EMBEDDINGS = "/v1/score/sie/mini-en", "/v1/rerank", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    SCORE: {"query": {"text": "rain"}, "items": [{"text": "stars"}]},
    "/v1/encode/sie/mini-en": {"items": [{"text": "stars"}]},
    RERANK: {"model": "sie/mini-en", "query": "rain", "documents": ["stars"]},
    EMBEDDINGS: {"model": "sie/mini-en", "input": "stars"},
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with asking({"sie/mini-en": EMBEDDED / "mini-en"}) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture
def busy(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Return the service, whose device has work for an hour."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service.worker, "seconds_until_done", lambda demand: 3600 + demand.seconds)
    service.admission._early = None
    return service


@pytest.mark.parametrize("path", BODIES)
def test_a_request_that_would_wait_too_long_is_refused(client: TestClient, busy: Service, path: str) -> None:
    answer = client.post(path, json=BODIES[path])
    assert answer.status_code == 503 and answer.headers["X-SIE-Error-Code"] == "QUEUE_FULL"
    assert int(answer.headers["Retry-After"]) > 1000
    assert "at most 20.0 s are accepted" in answer.text


def test_a_refusal_does_not_read_the_body(client: TestClient, busy: Service) -> None:
    answer = client.post(SCORE, content=b"no JSON")
    assert answer.json()["code"] == "QUEUE_FULL"


def test_inspect_does_not_use_the_device(client: TestClient, busy: Service) -> None:
    assert client.post("/v1/inspect/sie/mini-en", json=BODIES[SCORE]).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_a_deadline_in_the_header_holds_for_every_route(client: TestClient, path: str) -> None:
    late = client.post(path, json=BODIES[path], headers={"X-SIE-Deadline-Ms": "1"})
    assert late.status_code == 503 and late.headers["Retry-After"]
    assert client.post(path, json=BODIES[path], headers={"X-SIE-Deadline-Ms": "60000"}).status_code == 200


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "1e3", "9" * 5000, "", "\u00b2"])
def test_a_header_that_is_no_deadline_is_refused(client: TestClient, value: str) -> None:
    headers = {"X-SIE-Deadline-Ms": value.encode("latin-1")}
    answer = client.post(SCORE, json=BODIES[SCORE], headers=headers)
    assert answer.status_code == 400 and "X-SIE-Deadline-Ms" in answer.json()["detail"]["message"]
    assert len(answer.content) < 1000


def with_options(**options: Any) -> dict[str, Any]:
    return {**BODIES[SCORE], "options": options}


def test_a_deadline_in_the_options_is_refused_at_once_if_it_cannot_be_met(client: TestClient) -> None:
    answer = client.post(SCORE, json=with_options(deadline_ms=1))
    assert answer.json()["code"] == "QUEUE_FULL" and "deadline" in answer.json()["detail"]["message"]
    assert client.post(SCORE, json=with_options(deadline_ms=60_000)).status_code == 200
    assert client.post(SCORE, json=with_options(deadline_ms=0)).status_code == 400


@pytest.mark.parametrize("priority", ["interactive", "bulk", None])
def test_both_lanes_give_the_same_scores(client: TestClient, priority: str | None) -> None:
    answer = client.post(SCORE, json=with_options(priority=priority)).json()
    [found], [other] = answer["scores"], client.post(SCORE, json=BODIES[SCORE]).json()["scores"]
    assert found == {**other, "score": pytest.approx(other["score"], abs=1e-6)}  # batches may differ
    assert "warnings" not in answer


def test_an_unknown_lane_is_refused(client: TestClient) -> None:
    answer = client.post(SCORE, json=with_options(priority="high"))
    assert answer.status_code == 400 and "$.options.priority" in answer.json()["detail"]["message"]


def test_a_deadline_that_passes_while_the_request_waits_ends_the_wait(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service.worker, "seconds_until_done", lambda demand: 0.0)  # the estimate is wrong
    monkeypatch.setattr(service.worker._queue, "take", lambda: None)  # and the device takes nothing
    answer = client.post(SCORE, json=with_options(deadline_ms=300))
    assert answer.json()["code"] == "QUEUE_FULL"
    assert "the deadline of the request was over" in answer.json()["detail"]["message"]
    assert not service.worker._queue, "its work must leave the queue"
