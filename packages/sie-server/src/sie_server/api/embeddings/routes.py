"""Routes of the embeddings APIs: read the body, run an encode request, write the vendor's response."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.routes import BODY, json_answer
from sie_server.api.edge.bodies import unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.api.embeddings import openai, tei
from sie_server.api.embeddings.reading import Call
from sie_server.api.reading import encoded, model_of, read, service_of
from sie_server.errors import InvalidInput

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
OPENAI = ("/v1/embeddings", "/embeddings", "/infinity/embeddings")
TEI: dict[str, Callable[[Fields], Call]] = {
    "/embed": tei.embed,
    "/embed_sparse": tei.embed_sparse,
    "/embed_all": tei.embed_all,
    "/similarity": tei.similarity,
}
INFO = "/info"


def encoding(read_body: Callable[[Fields], Call]) -> Endpoint:
    """Return the endpoint of a route whose body `read_body` reads."""

    async def encode(request: Request) -> Response:
        check_unread(request)
        call: Call = await read(request, BODY, convert=lambda body: read_body(Fields(body)))
        return await answer(request, call)

    return encode


async def answer(request: Request, call: Call) -> Response:
    """Run the request and write its response."""
    service, timing = service_of(request), request.state.timing
    model = await model_of(request, call.model, call.output)
    try:
        found = await unless_gone(request, service.encode(model, call.encode, timing, call.vendor))
    except InvalidInput as error:
        raise InvalidInput(call.in_callers_terms(error.message)) from None
    content = await encoded(request, found, lambda: msgspec.json.encode(call.write(found)))
    warnings = [*call.warnings, *(call.in_callers_terms(each) for each in found.warnings or [])]
    return json_answer(msgspec.Raw(content), timing, warnings)


async def info(request: Request) -> Response:
    """GET /info: of the first model that is served"""
    service = service_of(request)
    model = service.registry.info(await model_of(request, None, None))
    return json_answer(tei.info(model, service.config), request.state.timing, [])


ROUTES = [
    *(Route(path, encoding(openai.embeddings), methods=["POST"]) for path in OPENAI),
    *(
        Route(prefix + path, encoding(read_body), methods=["POST"])
        for prefix in ("", "/tei")
        for path, read_body in TEI.items()
    ),
    *(Route(prefix + INFO, info) for prefix in ("", "/tei")),
]
