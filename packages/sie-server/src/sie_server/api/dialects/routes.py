"""Routes of the dialects: select the dialect of a body, run a score request, write the dialect's response."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api import codec
from sie_server.api.dialects import EMBED, INFO, RERANK, dialect_of
from sie_server.api.dialects.dialect import Dialect, RerankRequest, answer_of, warning_header
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.vendors import tei
from sie_server.api.edge.bodies import unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.api.reading import check_model, encoded, read, service_of
from sie_server.errors import InvalidInput
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import EncodeRequest, ScoreRequest

BODY = dict[str, msgspec.Raw]  # a field is decoded when the dialect takes it


async def rerank(request: Request) -> Response:
    """POST to any path of `RERANK`"""
    service, timing = service_of(request), request.state.timing

    def parse(body: dict[str, msgspec.Raw]) -> tuple[Dialect, RerankRequest, list[ScoreRequest]]:
        dialect = request.state.dialect = dialect_of(request.scope["path"], body)  # `on_error` reads it
        fields = Fields(body)
        parsed = dialect.read(fields)
        fields.finish(strict=dialect.strict)
        return dialect, parsed, parsed.score_requests()

    check_unread(request)
    dialect, parsed, requests = await read(request, BODY, convert=parse)
    model = _model(request, parsed.model)
    try:
        answer = await unless_gone(request, service.score_each(model, requests, timing, pairs=parsed.pairs))
    except InvalidInput as error:
        raise InvalidInput(parsed.in_callers_terms(error.message)) from None
    written = answer_of(parsed, answer, request.state.request_id, timing)
    return _json(dialect.write(written), timing, written.warnings)


def parse_embed(body: dict[str, msgspec.Raw]) -> tuple[str | None, EncodeRequest, bool, list[str]]:
    """Return what `tei.read_embed` does, and the warnings."""
    fields = Fields(body)
    return *tei.read_embed(fields), fields.warnings


async def embed(request: Request) -> Response:
    """POST /embed"""
    service, timing = service_of(request), request.state.timing
    check_unread(request)
    model_name, encode, truncate, warnings = await read(request, BODY, convert=parse_embed)
    model = _model(request, model_name, "dense")
    try:
        answer = await unless_gone(request, service.encode(model, encode, timing))
    except InvalidInput as error:
        raise tei.embed_in_callers_terms(error) from None
    content = await encoded(request, answer, lambda: msgspec.json.encode(tei.write_embed(answer, truncate)))
    return _json(msgspec.Raw(content), timing, [*warnings, *(answer.warnings or [])])


async def info(request: Request) -> Response:
    """GET /info"""
    service = service_of(request)
    model = service.registry.info(_model(request, None))
    return _json(tei.info(model, service.config), request.state.timing, [])


ROUTES = [
    *(Route(path, rerank, methods=["POST"]) for path in RERANK),
    *(Route(path, embed, methods=["POST"]) for path in EMBED),
    *(Route(path, info) for path in INFO),
]


def _model(request: Request, name: str | None, output: str = "score") -> str:
    """Return the model in the body, else the first `--model` with `output`; also set the label of the metrics."""
    service = service_of(request)
    names = service.registry.configured()
    model = name or next((n for n in names if output in service.registry.info(n).outputs), None)
    if model is None:
        raise InvalidInput(
            f"missing required field `model`; no --model of this server supports {output!r} - at `$.model`"
        )
    request.state.model = check_model(service, model)
    return model


def _json(written: Any, timing: RequestTiming, warnings: list[str]) -> Response:
    headers = {**timing.headers(), **warning_header(warnings)}
    return Response(msgspec.json.encode(written), media_type=codec.JSON, headers=headers)
