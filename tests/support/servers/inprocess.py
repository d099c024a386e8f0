"""The real application over real checkpoints, asked through ASGI inside the test's process: quick to start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.config import ServerConfig
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.service import Service
from sie_server.wire import Item, ScoreRequest
from support.device import DEVICE
from support.waiting import until

__all__ = ["FP32", "ask", "asking", "in_order", "post", "scores", "serving", "until"]
FP32 = ServerConfig(device=DEVICE, dtype="float32", offline=True, threads=1, batch_tokens=2048, model=())


@contextmanager
def asking(models: dict[str, Path], **config: Any) -> Iterator[TestClient]:
    """A client of an app that serves `models` (id → directory) in fp32 on one thread."""
    named = tuple(f"{name}={path}" for name, path in models.items())
    app = create_app(msgspec.structs.replace(FP32, model=named, **config))
    with TestClient(app, headers={"accept": "application/json"}) as client:
        yield client


def post(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    """The decoded JSON answer, which must have this status."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def ask(
    client: TestClient, model: str, query: str, texts: list[str], status: int = 200, **options: Any
) -> Any:
    """A score request for plain texts."""
    body = {"query": {"text": query}, "items": [{"text": text} for text in texts], "options": options}
    return post(client, f"/v1/score/{model}", body, status)


def in_order(answer: Any, key: str = "score") -> list[Any]:
    """One field of the entries in the order of the request."""
    entries = sorted(answer["scores"], key=lambda entry: int(entry["item_id"].removeprefix("item-")))
    return [entry[key] for entry in entries]


@asynccontextmanager
async def serving(**config: Any) -> AsyncIterator[Service]:
    """The service without HTTP, in fp32 on one thread; nothing is loaded yet."""
    service = Service(msgspec.structs.replace(FP32, **config))
    try:
        yield service
    finally:
        await service.close()


async def scores(service: Service, model: str, query: str, texts: list[str]) -> tuple[float, ...]:
    """Scores in the order of `texts`."""
    request = ScoreRequest(Item(text=query), [Item(text=text) for text in texts])
    answer = await service.score(model, request, RequestTiming())
    by_id = {entry.item_id: entry.score for entry in answer.scores}
    return tuple(by_id[f"item-{i}"] for i in range(len(texts)))
