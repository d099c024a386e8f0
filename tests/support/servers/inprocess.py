"""The real application with real checkpoints, called through ASGI in the test process, which starts quickly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.config import ServerConfig
from sie_server.serving.loading.lanes import Lane
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.operators.watcher import Follower
from sie_server.serving.service import Service
from sie_server.wire import Item, ScoreRequest
from support.device import DEVICE
from support.waiting import until

LOCAL_URL, LOCAL_PEER = "http://localhost", ("127.0.0.1", 50000)  # only local callers see paths


class Looks:
    """Counts scans of the models directory, and the changes that they start; created by the fixture `looks`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.ahead_s = 0.0  # added to the watchers' clock
        self.begun: list[str] = []  # model of each change or retry that a watcher has started
        self.under_way = 0  # started and not ended
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
        """Wait until the watcher has acted on changes that are now on disk.

        A change counts at the second scan that finds it, and a scan in progress may miss it.
        """
        start = self.count
        await until(lambda: self.count >= start + 3)


FP32 = ServerConfig(device=DEVICE, dtype="float32", offline=True, threads=1, batch_tokens=2048, model=())


@contextmanager
def asking(models: dict[str, Path], **config: Any) -> Iterator[TestClient]:
    """Yield a client of an app that serves `models` (id → directory) in fp32 on one thread."""
    named = tuple(f"{name}={path}" for name, path in models.items())
    app = create_app(msgspec.structs.replace(FP32, model=named, **config), Service)
    with TestClient(app, LOCAL_URL, client=LOCAL_PEER, headers={"accept": "application/json"}) as client:
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
    service = Service(msgspec.structs.replace(FP32, **config), Service)
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


def occupy(lane: Lane, gate: threading.Event) -> None:
    """Keep one thread of a lane busy until the gate is set."""
    BUSY.append(asyncio.create_task(lane.run(lambda: gate.wait(60))))


BUSY: list[asyncio.Task[bool]] = []  # a task without a reference may disappear
