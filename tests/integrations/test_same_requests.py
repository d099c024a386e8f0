"""The same 200 requests through every client and every dialect yield the same order and scores (within 1e-6)."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_sdk import SIEAsyncClient, SIEClient
from sie_server.catalog import catalog
from support.requests.dialects import SPOKEN
from support.requests.questions import (
    MODELS,
    PROBABILITY,
    SIMILARITY,
    Expected,
    Hits,
    Request,
    expect,
    random_requests,
)
from support.servers import programs
from support.servers.processes import JSON, Server

REQUESTS = random_requests(200)
# one path per response format; test_same_scores covers the other paths
DIALECTS = ["cohere v2", "cohere v1", "jina", "voyage", "infinity", "vllm rerank", "vllm score", "tei", "nim"]


@pytest.fixture(scope="module")
def logits(server: Server) -> list[Expected]:
    """Return the scores before activation of every document of every request.

    These are the second answers: with cached documents, as the answers to all clients are.
    """
    for r in REQUESTS:
        expect(server, r.model, r.query, r.texts, normalize="none")
    return [expect(server, r.model, r.query, r.texts, normalize="none") for r in REQUESTS]


def compare(found: list[Hits], logits: list[Expected], *squashed: str, cut: bool = True) -> None:
    """Compare the best `top_n` hits (all, without `cut`).

    Models in `squashed` apply the sigmoid or their calibration to the raw value.
    """
    calibration = catalog()[SIMILARITY].calibration
    assert calibration
    for request, hits, raw in zip(REQUESTS, found, logits, strict=True):
        scores = raw.scores
        if request.model == SIMILARITY and request.model in squashed:
            scores = {index: calibration.probability(score) for index, score in scores.items()}
        elif request.model in squashed:
            scores = {index: 1 / (1 + math.exp(-score)) for index, score in scores.items()}
        Expected(raw.order, scores).check(hits)
        assert len(hits) == min(request.top_n if cut and request.top_n else 20, len(request.texts))


def test_the_requests_are_many_and_varied() -> None:
    assert len(REQUESTS) == 200 and {request.model for request in REQUESTS} == set(MODELS)
    assert {len(request.texts) for request in REQUESTS} == set(range(1, 21))
    assert all(sum(text in r.texts for r in REQUESTS) >= 10 for text in ("", "🌧️ дождь завтра"))
    assert 50 < sum(r.ids is None for r in REQUESTS) < 150
    assert 50 < sum(r.top_n is None for r in REQUESTS) < 150


# ── the native route ──


def options(request: Request, name: str = "top_n") -> dict[str, Any]:
    return {name: request.top_n} if request.top_n else {}


def python(server: Server, folder: Path) -> list[Hits]:
    with SIEClient(server.base_url) as client:
        return [r.hits(client.score(r.model, **r.body, options=options(r))["scores"]) for r in REQUESTS]


def python_async(server: Server, folder: Path) -> list[Hits]:
    async def ask() -> list[Hits]:
        async with SIEAsyncClient(server.base_url) as client:
            answers = [await client.score(r.model, **r.body, options=options(r)) for r in REQUESTS]
        return [r.hits(answer["scores"]) for r, answer in zip(REQUESTS, answers, strict=True)]

    return asyncio.run(ask())


def typescript(server: Server, folder: Path) -> list[Hits]:
    programs.npm()
    path = folder / "requests.json"
    asked = [{"model": r.model, **r.body, "options": options(r, "topN")} for r in REQUESTS]
    path.write_text(json.dumps(asked), encoding="utf-8")
    script, env = "build/test/server/rank.js", {"SIE_BASE_URL": server.base_url}
    answers = json.loads(programs.run("node", script, str(path), env=env))
    return [r.hits(scores, "itemId") for r, scores in zip(REQUESTS, answers, strict=True)]


def curl(server: Server, folder: Path) -> list[Hits]:
    """Send requests as the documentation shows, with the body in a file."""
    program, path, found = programs.found("curl", "curl"), folder / "body.json", []
    for request in REQUESTS:
        path.write_text(json.dumps({**request.body, "options": options(request)}), encoding="utf-8")
        command = [program, "-sS", "--fail-with-body", "--data-binary", f"@{path}"]
        command += ["-H", f"Content-Type: {JSON}", "-H", f"Accept: {JSON}"]
        url = f"{server.base_url}/v1/score/{request.model}"
        printed = subprocess.run([*command, url], check=True, capture_output=True, timeout=60).stdout
        found.append(request.hits(json.loads(printed)["scores"]))
    return found


@pytest.mark.parametrize("client", [python, python_async, typescript, curl])
def test_clients(server: Server, logits: list[Expected], client: Any, tmp_path: Path) -> None:
    compare(client(server, tmp_path), logits, PROBABILITY)


# ── the dialects ──


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects(server: Server, logits: list[Expected], name: str) -> None:
    """Dialects return probabilities; NIM returns logits and similarities."""
    spoken, found = SPOKEN[name], []
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        for request in REQUESTS:
            more = options(request) if spoken.ordered else {}
            body = spoken.request(request.model, request.query, request.texts, **more)
            answer = client.post(spoken.path, json=body)
            assert answer.status_code == 200, answer.text
            found.append(spoken.found(answer.json()))
    compare(found, logits, *(() if spoken.raw else MODELS), cut=spoken.ordered)
