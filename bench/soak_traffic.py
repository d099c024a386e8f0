"""The requests and faults of `bench.soak`, and the checkpoints that it serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.raw_client import JSON, MSGPACK, Connection, request
from bench.workload import TOY, natural_texts, write_checkpoint

TOY_MODEL, ENCODER, EMBEDDED = "bench/toy", "bench/encoder", "sie/mini-en"
Fault = Callable[[int, random.Random], Awaitable[None]]
BUSY = frozenset({200, 503})


@dataclass(frozen=True)
class Kind:
    """Requests of one kind, one of many bodies, with the statuses that they may get."""

    name: str
    weight: float
    sent: bytes
    expected: frozenset[int] = BUSY


class Traffic:
    """All kinds of requests, each with several bodies, prepared as bytes."""

    def __init__(self, seed: int = 0) -> None:
        texts = natural_texts(400, 12.0, seed)
        rng = random.Random(seed)
        self._kinds = [kind for _ in range(20) for kind in kinds(rng.sample(texts, 4))]
        self._weights = [kind.weight for kind in self._kinds]

    def pick(self, rng: random.Random) -> Kind:
        return rng.choices(self._kinds, self._weights)[0]


def kinds(texts: list[str]) -> list[Kind]:
    """Return one request of each kind for these texts."""
    query, *documents = texts
    items = [{"id": str(i), "text": text} for i, text in enumerate(documents)]
    scored = {"query": {"text": query}, "items": items}
    encoded = {"items": items[:2], "params": {"output_types": ["multivector"]}}
    adapted = {**scored, "options": {"lora": "kept", "priority": "bulk", "top_n": 1}}
    return [
        Kind("score", 12, request("POST", f"/v1/score/{TOY_MODEL}", scored)),
        Kind("score, MessagePack", 12, request("POST", f"/v1/score/{TOY_MODEL}", scored, media=MSGPACK)),
        Kind("score, embedded", 4, request("POST", f"/v1/score/{EMBEDDED}", scored)),
        Kind("score, adapter", 6, request("POST", f"/v1/score/{TOY_MODEL}", adapted)),
        Kind("encode, MessagePack", 4, request("POST", f"/v1/encode/{EMBEDDED}", encoded, media=MSGPACK)),
        Kind("encode", 2, request("POST", f"/v1/encode/{EMBEDDED}", encoded)),
        Kind("encode, dense", 2, request("POST", f"/v1/encode/{ENCODER}", {"items": items}, media=MSGPACK)),
        Kind("embeddings", 4, request("POST", "/v1/embeddings", {"model": ENCODER, "input": documents})),
        Kind("inspect", 3, request("POST", f"/v1/inspect/{TOY_MODEL}", scored)),
        Kind("models", 3, request("GET", "/v1/models"), frozenset({200})),
        Kind("model", 2, request("GET", f"/v1/models/{EMBEDDED}"), frozenset({200})),
        Kind("metrics", 1, request("GET", "/metrics"), frozenset({200})),
        Kind("health", 3, request("GET", "/healthz"), frozenset({200})),
        Kind("OpenAPI", 0.2, request("GET", "/openapi.json"), frozenset({200})),
        *dialects(query, documents),
        *wrong(scored),
    ]


def dialects(query: str, documents: list[str]) -> list[Kind]:
    named = {"model": TOY_MODEL, "query": query}
    bodies: dict[str, Any] = {
        "/v2/rerank": {**named, "documents": documents},
        "/v1/rerank": {**named, "documents": documents, "return_documents": True},
        "/rerank": {"query": query, "texts": documents},
        "/v1/ranking": {
            **named,
            "query": {"text": query},
            "passages": [{"text": text} for text in documents],
        },
        "/score": {"model": TOY_MODEL, "queries": query, "documents": documents},
    }
    return [Kind(f"dialect {path}", 1.5, request("POST", path, body)) for path, body in bodies.items()]


def wrong(scored: dict[str, Any]) -> list[Kind]:
    """Return requests that are refused."""
    refused = frozenset({400, 404, 405})
    embeddings = {"model": TOY_MODEL, "input": "a"}  # a cross-encoder has no vectors
    return [
        Kind("embeddings, wrong model", 2, request("POST", "/v1/embeddings", embeddings), refused),
        Kind("unknown option", 1, request("POST", f"/v1/score/{TOY_MODEL}", {**scored, "options": {"x": 1}})),
        Kind("no items", 1, request("POST", f"/v1/score/{TOY_MODEL}", {**scored, "items": []}), refused),
        Kind("no JSON", 1, request("POST", f"/v1/score/{TOY_MODEL}", b'{"query": '), refused),
        Kind("wrong method", 1, request("GET", f"/v1/score/{TOY_MODEL}"), refused),
        Kind("no route", 1, request("GET", "/v1/nothing"), refused),
    ]


def faults(folder: Path) -> list[Fault]:
    """Return the faults that are injected."""

    async def hang_up(port: int, rng: random.Random) -> None:
        """Leave while the answer is computed."""
        texts = [{"text": "rain falls " * rng.randint(10, 200)} for _ in range(50)]
        body = {"query": {"text": "rain"}, "items": texts}
        with contextlib.suppress(TimeoutError, OSError):
            await Connection(port).ask(
                request("POST", f"/v1/score/{TOY_MODEL}", body), rng.uniform(0.001, 0.05)
            )

    async def half_open(port: int, rng: random.Random) -> None:
        """Send a part of a request and wait."""
        whole = request("POST", f"/v1/score/{TOY_MODEL}", b"a" * 5000)
        await send(port, whole[: rng.randrange(len(whole))], rng.uniform(0.5, 2))

    async def broken_body(port: int, rng: random.Random) -> None:
        media = rng.choice([JSON, MSGPACK])
        path = rng.choice(
            [f"/v1/score/{TOY_MODEL}", f"/v1/encode/{EMBEDDED}", "/v1/rerank", "/v1/embeddings"]
        )
        await ask(port, request("POST", path, rng.randbytes(rng.randint(1, 3000)), media=media))

    async def unknown_model(port: int, rng: random.Random) -> None:
        body = {"model": f"unknown/{rng.random()}", "query": "a", "documents": ["b"]}
        await ask(port, request("POST", "/v2/rerank", body))

    async def failing_load(port: int, rng: random.Random) -> None:
        body = {"model": f"missing/{rng.random()}", "source": str(folder / f"missing-{rng.random()}")}
        await ask(port, request("POST", "/v1/admin/load", body))

    async def no_http(port: int, rng: random.Random) -> None:
        await send(port, rng.randbytes(100), 0.2)

    async def large_header(port: int, rng: random.Random) -> None:
        await ask(port, request("GET", "/healthz", headers=f"X: {'a' * 300_000}\r\n"))

    return [hang_up, half_open, broken_body, unknown_model, failing_load, no_http, large_header]


async def ask(port: int, sent: bytes) -> None:
    """Send a request whose answer does not matter."""
    connection = Connection(port)
    with contextlib.suppress(TimeoutError, OSError, ValueError):
        await connection.ask(sent, 20)
    connection.close()


async def send(port: int, sent: bytes, seconds: float) -> None:
    """Send bytes and keep the connection for a while."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await asyncio.sleep(seconds)
        writer.close()


def write_models(folder: Path) -> None:
    """Write two versions of the toy model and an adapter."""
    from bench.lora import write_adapter

    for seed, name in enumerate(("a", "b")):
        write_checkpoint(TOY, folder / name, seed)
    write_adapter(folder / "a", folder / "adapter", 4, 0, ["query", "value"])
    write_encoder(folder / "a", folder / "encoder")


def write_encoder(source: Path, directory: Path) -> None:
    """Write the backbone of a cross-encoder as a model of sentence-transformers with mean pooling."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(source)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
