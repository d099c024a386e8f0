"""The real application with real checkpoints, called through ASGI in the test process, which starts quickly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.config import ServerConfig
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.operators.watcher import Follower
from sie_server.serving.service import Service
from sie_server.wire import Item, ScoreRequest
from support.device import DEVICE
from support.waiting import until


class Looks:
    """Counts the looks of the watchers of the models directory; made by the fixture `looks`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.ahead_s = 0.0  # how far the clock of the watchers is ahead
        self.begun: list[str] = []  # models with a change or another try that a watcher began
        self.under_way = 0  # of those
        follow, start = Follower.follow, Follower._start

        def counted(follower: Follower, found: Any, now: float) -> None:
            follow(follower, found, now + self.ahead_s)
            self.count += 1

        def noted(follower: Follower, name: str, change: Any) -> None:
            async def counted_change() -> None:
                self.under_way += 1
                try:
                    await change()
                finally:
                    self.under_way -= 1

            self.begun.append(name)
            start(follower, name, counted_change)

        monkeypatch.setattr(Follower, "follow", counted)
        monkeypatch.setattr(Follower, "_start", noted)

    async def wait(self) -> None:
        """Wait until a change that is on disk now has been acted on.

        A change counts at the second look that sees it, and the look under way may have missed it.
        """
        start = self.count
        await until(lambda: self.count >= start + 3)


FP32 = ServerConfig(device=DEVICE, dtype="float32", offline=True, threads=1, batch_tokens=2048, model=())


@contextmanager
def asking(models: dict[str, Path], **config: Any) -> Iterator[TestClient]:
    """Yield a client of an app that serves `models` (id → directory) in fp32 on one thread."""
    named = tuple(f"{name}={path}" for name, path in models.items())
    app = create_app(msgspec.structs.replace(FP32, model=named, **config))
    with TestClient(app, headers={"accept": "application/json"}) as client:
        yield client


def post(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    """Return the decoded JSON answer, which must have this status."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def ask(
    client: TestClient, model: str, query: str, texts: list[str], status: int = 200, **options: Any
) -> Any:
    """Send a score request for plain texts."""
    body = {"query": {"text": query}, "items": [{"text": text} for text in texts], "options": options}
    return post(client, f"/v1/score/{model}", body, status)


def in_order(answer: Any, key: str = "score") -> list[Any]:
    """Return one field of the entries in the order of the request."""
    entries = sorted(answer["scores"], key=lambda entry: int(entry["item_id"].removeprefix("item-")))
    return [entry[key] for entry in entries]


@asynccontextmanager
async def serving(**config: Any) -> AsyncIterator[Service]:
    """Start the service without HTTP, in fp32 on one thread; no model is loaded yet."""
    service = Service(msgspec.structs.replace(FP32, **config))
    try:
        yield service
    finally:
        await service.close()


async def scores(service: Service, model: str, query: str, texts: list[str]) -> tuple[float, ...]:
    """Return scores in the order of `texts`."""
    request = ScoreRequest(Item(text=query), [Item(text=text) for text in texts])
    answer = await service.score(model, request, RequestTiming())
    by_id = {entry.item_id: entry.score for entry in answer.scores}
    return tuple(by_id[f"item-{i}"] for i in range(len(texts)))
