"""A model whose forward passes fail is named, tested by the server, and makes it not ready until it works again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import sie_server
from sie_server.engine.engine import Engine
from sie_server.engine.job import Work
from sie_server.serving.device import health, thread
from support.servers.inprocess import ask, asking
from support.waiting import eventually

EMBEDDED = Path(sie_server.__file__).parent / "embedded/mini-en"
RUN = Engine.run


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with asking({"toy/a": EMBEDDED, "toy/b": EMBEDDED}) as client:
        for model in ("toy/a", "toy/b"):
            ask(client, model, "rain", ["rain falls"])
        yield client


class Fault:
    """Makes passes of one model fail: all of them, or those over a text with a word."""

    def __init__(self, client: TestClient, model: str, error: Exception, word: str | None = None) -> None:
        slot = client.app.state.service.registry.slot(model)  # type: ignore[attr-defined]
        self.engine, self.error, self.word = slot.serving.engine, error, word

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Engine, "run", lambda engine, works: self._run(engine, works))

    def _run(self, engine: Engine, works: list[Work]) -> list[Any]:
        texts = (engine.decode(work.tokens.ids.tolist()) for work in works)
        if engine is self.engine and (self.word is None or any(self.word in text for text in texts)):
            raise self.error
        return RUN(engine, works)


def last_error(client: TestClient, model: str) -> str | None:
    found: str | None = client.get(f"/v1/models/{model}").json()["last_error"]
    return found


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("unlucky"), 500, "the model failed: ValueError"),
        (MemoryError(), 503, "the device ran out of memory"),
        (RuntimeError("could not create a primitive"), 503, "the device ran out of memory"),
    ],
    ids=["broken", "memory", "kernel"],
)
def test_a_broken_model_is_named_while_another_one_works(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, reason: str
) -> None:
    monkeypatch.setattr(thread, "TEST_EVERY_S", 0.01)
    monkeypatch.setattr(health, "TEST_EVERY_S", 0.01)
    with monkeypatch.context() as patch:
        Fault(client, "toy/b", error).install(patch)
        for count in range(health.MOST_FAILURES):
            assert last_error(client, "toy/b") is None and client.get("/readyz").status_code == 200, count
            ask(client, "toy/b", "rain", ["rain falls"], status)
            ask(client, "toy/a", "rain", ["rain falls"])
        assert eventually(lambda: "a text of the server fails, too" in (last_error(client, "toy/b") or ""))
        assert (last_error(client, "toy/b") or "").startswith(
            f"3 forward passes in a row have failed: {reason}"
        )
        assert last_error(client, "toy/a") is None
        ready = client.get("/readyz")
        assert ready.status_code == 503 and f"have failed: {reason}" in ready.text
        ask(client, "toy/a", "rain", ["rain falls"])  # the other model does not hide it
        assert client.get("/readyz").status_code == 503
    assert eventually(lambda: client.get("/readyz").status_code == 200)  # without a request
    assert last_error(client, "toy/b") is None
    ask(client, "toy/b", "rain", ["rain falls"])


def test_texts_that_fail_leave_no_error_at_the_model(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fault(client, "toy/b", ValueError(), word="poison").install(monkeypatch)
    for _ in range(2 * health.MOST_FAILURES):
        ask(client, "toy/b", "rain", ["poison"], 500)
    # the device thread notes a failure after the caller has its answer
    assert eventually(lambda: client.get("/readyz").status_code == 200 and not last_error(client, "toy/b"))


def test_the_first_success_clears_the_error(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "TEST_EVERY_S", 60)
    monkeypatch.setattr(health, "TEST_EVERY_S", 60)
    with monkeypatch.context() as patch:
        Fault(client, "toy/b", ValueError()).install(patch)
        for _ in range(health.MOST_FAILURES + 1):
            ask(client, "toy/b", "rain", ["rain falls"], 500)
        assert eventually(lambda: (last_error(client, "toy/b") or "").startswith("4 forward passes"))
    ask(client, "toy/b", "rain", ["rain falls"])
    assert eventually(lambda: last_error(client, "toy/b") is None)
    assert client.get("/readyz").status_code == 200
