"""Health probes: SIE's own, and those of the servers that SIE can replace.

A *liveness* probe fails if only a restart helps. A *readiness* probe also fails while models load, after failures of
the device, and during shutdown. `/health` is a readiness probe, because the servers that have it (TEI, vLLM, infinity,
llama.cpp) answer 200 there only with their model loaded. So is SageMaker's `/ping` (docs.aws.amazon.com/sagemaker).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sie_server import __version__
from sie_server.api.edge.paths import HEALTH_JSON, LIVENESS, NIM_LIVE, NIM_READY, READINESS, WEAVIATE
from sie_server.api.reading import service_of

Problem = str | None
Check = Callable[[Request], Problem]
Write = Callable[[Problem], Response]


def dead(request: Request) -> Problem:
    """Return why the server must be restarted: the device thread has ended, or is stuck in one step."""
    return service_of(request).death()


def unready(request: Request) -> Problem:
    """Return why the server should get no requests now."""
    state = request.app.state
    if problem := service_of(request).unready():
        return problem
    return "not ready" if not state.ready or state.draining else None


def _plain(problem: Problem) -> Response:
    return PlainTextResponse(problem or "ok", 503 if problem else 200)


def _json(problem: Problem) -> Response:
    """Answer `/health` for all its clients: `status` and `error` of llama.cpp, `unix` of infinity.

    TEI's and vLLM's clients read the status code only.
    """
    if problem:
        error = {"code": 503, "message": problem, "type": "unavailable_error"}
        return JSONResponse({"status": "error", "error": error}, 503)
    return JSONResponse({"status": "ok", "unix": time.time()})


def _nim(word: str) -> Write:
    """Return the writer of a probe of NIM. Source: docs.nvidia.com/nim/nemo-retriever/embedding, "Health Checks"."""

    def write(problem: Problem) -> Response:
        body = {"object": "health.response", "message": problem or word, word: not problem}
        return JSONResponse(body, 503 if problem else 200)

    return write


def _empty(problem: Problem) -> Response:
    """Answer Weaviate's probes: 204 without a body. Source: its reranker-transformers module."""
    return _plain(problem) if problem else Response(status_code=204)


WRITERS: dict[str, Write] = {
    **dict.fromkeys(HEALTH_JSON, _json),
    **dict.fromkeys(NIM_LIVE, _nim("live")),
    **dict.fromkeys(NIM_READY, _nim("ready")),
    **{f"{prefix}/.well-known/{probe}": _empty for prefix in ("", WEAVIATE) for probe in ("live", "ready")},
}


def _probe(check: Check, write: Write) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def probe(request: Request) -> Response:
        return write(check(request))

    return probe


async def version(request: Request) -> Response:
    """GET /version: as vLLM's"""
    return JSONResponse({"version": __version__})


async def meta(request: Request) -> Response:
    """GET /meta: Weaviate reads it once at start and shows it; it may have any keys"""
    return JSONResponse({"name": "sie", "version": __version__, "models": service_of(request).configured()})


ROUTES = [
    *(Route(path, _probe(dead, WRITERS.get(path, _plain))) for path in LIVENESS),
    *(Route(path, _probe(unready, WRITERS.get(path, _plain))) for path in READINESS),
    Route("/version", version),
    Route("/meta", meta),
    Route(f"{WEAVIATE}/meta", meta),
]
