"""The real application over real checkpoints, asked through ASGI inside the test's process: quick to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient

from sie_server.api.app import create_app
from sie_server.config import ServerConfig

FP32 = ServerConfig(device="cpu", dtype="float32", offline=True, threads=1, batch_tokens=2048, model=())


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
