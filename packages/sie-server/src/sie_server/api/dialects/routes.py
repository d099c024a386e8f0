"""Routes of the dialects: select the dialect of a body, run a score request, write the dialect's response."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api import codec
from sie_server.api.dialects import EMBED, INFO, RERANK, dialect_of
from sie_server.api.dialects.dialect import answer_of, warning_header
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.vendors import tei
from sie_server.api.edge.bodies import read_body, unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.errors import InvalidInput
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.service import Service


async def rerank(request: Request) -> Response:
    """POST to any path of `RERANK`"""
    service, timing = _service(request), request.state.timing
    body = await _body(request)
    dialect = request.state.dialect = dialect_of(request.url.path, body)  # `on_error` reads it
    fields = Fields(body)
    parsed = dialect.read(fields)
    fields.finish(strict=dialect.strict)
    model = _model(request, parsed.model)
    try:
        answer = await unless_gone(request, service.score(model, parsed.score_request(), timing))
    except InvalidInput as error:
        raise InvalidInput(parsed.in_callers_terms(error.message)) from None
    written = answer_of(parsed, answer, request.state.request_id)
    return _json(dialect.write(written), timing, written.warnings)


async def embed(request: Request) -> Response:
    """POST /embed"""
    service, timing = _service(request), request.state.timing
    model_name, encode, truncate = tei.read_embed(fields := Fields(await _body(request)))
    model = _model(request, model_name, "dense")
    try:
        answer = await unless_gone(request, service.encode(model, encode, timing))
    except InvalidInput as error:
        raise tei.embed_in_callers_terms(error) from None
    vectors = tei.write_embed(answer, truncate)
    return _json(vectors, timing, [*fields.warnings, *(answer.warnings or [])])


async def info(request: Request) -> Response:
    """GET /info"""
    service = _service(request)
    model = service.registry.info(_model(request, None))
    return _json(tei.info(model, service.config), request.state.timing, [])


ROUTES = [
    *(Route(path, rerank, methods=["POST"]) for path in RERANK),
    *(Route(path, embed, methods=["POST"]) for path in EMBED),
    *(Route(path, info) for path in INFO),
]


async def _body(request: Request) -> dict[str, Any]:
    check_unread(request)
    body = await read_body(request, _service(request).config.max_body_mb * 2**20)
    return codec.decode(body, codec.JSON, dict[str, Any])


def _model(request: Request, name: str | None, output: str = "score") -> str:
    """Return the model in the body, else the first `--model` with `output`; also set the label of the metrics."""
    service = _service(request)
    names = [value.partition("=")[0] for value in service.config.model]
    model = name or next((n for n in names if output in service.registry.info(n).outputs), None)
    if model is None:
        raise InvalidInput(
            f"missing required field `model`; no --model of this server supports {output!r} - at `$.model`"
        )
    request.state.model = model
    return model


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _json(written: Any, timing: RequestTiming, warnings: list[str]) -> Response:
    headers = {**timing.headers(), **warning_header(warnings)}
    return Response(msgspec.json.encode(written), media_type=codec.JSON, headers=headers)
