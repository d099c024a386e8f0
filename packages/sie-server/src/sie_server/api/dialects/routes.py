"""Routes of the dialects: select the dialect of a body, run a score request, write the dialect's response."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api import codec
from sie_server.api.dialects import RERANK, dialect_of
from sie_server.api.dialects.dialect import Dialect, RerankRequest, answer_of, warning_header
from sie_server.api.dialects.fields import Fields
from sie_server.api.edge.bodies import unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.api.reading import model_of, read, service_of
from sie_server.errors import InvalidInput
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import ScoreRequest

BODY = dict[str, msgspec.Raw]  # a field is decoded when the dialect takes it
Parsed = tuple[Dialect, RerankRequest, list[ScoreRequest]]


async def rerank(request: Request) -> Response:
    """POST to any path of `RERANK`"""
    check_unread(request)
    return await answer(request, await read(request, BODY, convert=lambda body: parse(request, body)))


def parse(request: Request, body: dict[str, msgspec.Raw]) -> Parsed:
    """Read a body in its dialect, which also becomes that of the request's errors."""
    dialect = request.state.dialect = dialect_of(request.scope["path"], body)
    fields = Fields(body)
    parsed = dialect.read(fields)
    fields.finish(strict=dialect.strict)
    return dialect, parsed, parsed.score_requests()


async def answer(request: Request, what: Parsed) -> Response:
    """Score the documents and write the dialect's response."""
    service, timing = service_of(request), request.state.timing
    dialect, parsed, requests = what
    model = await model_of(request, request.path_params.get("model") or parsed.model, "score")
    try:
        scores = await unless_gone(request, service.score_each(model, requests, timing, pairs=parsed.pairs))
        dialect.check_complete(scores)
    except InvalidInput as error:
        raise InvalidInput(parsed.in_callers_terms(error.message)) from None
    calibration = service.calibration(model)
    written = answer_of(parsed, scores, request.state.request_id, timing, calibration)
    return json_answer(dialect.write(written), timing, written.warnings)


ROUTES = [Route(path.replace("{model}", "{model:path}"), rerank, methods=["POST"]) for path in RERANK]


def json_answer(written: Any, timing: RequestTiming, warnings: list[str]) -> Response:
    """Return a JSON response with times and warnings in its headers."""
    headers = {**timing.headers(), **warning_header(warnings)}
    return Response(msgspec.json.encode(written), media_type=codec.JSON, headers=headers)
