"""Routes of the embeddings APIs: read the body, run an encode request, write the vendor's response."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sie_server.api import dialects
from sie_server.api.dialects import routes as scoring
from sie_server.api.dialects.fields import Fields
from sie_server.api.dialects.routes import BODY, json_answer
from sie_server.api.edge.bodies import unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.api.embeddings import infinity, openai, tei, tokens
from sie_server.api.embeddings.reading import Call
from sie_server.api.embeddings.tokens import TokenCall
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
TOKENS: dict[str, Callable[[Fields], TokenCall]] = {"/tokenize": tokens.tokenize, "/decode": tokens.decode}
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


async def anything(request: Request) -> Response:
    """POST /, /invocations: what the body is. A `query` makes it a rerank request, `input` one of OpenAI's.

    `inputs` with a sentence and others to compare it with is TEI's /similarity. Other `inputs` are texts for the first
    model that makes vectors, or else pairs for the first one that scores.
    """
    check_unread(request)
    read_texts = await _reader_of_texts(request)

    def parse(body: dict[str, msgspec.Raw]) -> Call | scoring.Parsed:
        inputs = bytes(memoryview(body.get("inputs", b""))).lstrip()
        if inputs.startswith(b"{") and b'"source_sentence"' in inputs:
            return tei.similarity(Fields(body))
        if "query" not in body and "input" in body:
            return openai.embeddings(Fields(body))
        if not inputs and "query" not in body:
            raise InvalidInput("missing required field: `inputs`, or `query` to rerank - at `$.inputs`")
        return read_texts(Fields(body)) if inputs and read_texts else scoring.parse(request, body)

    found = await read(request, BODY, convert=parse)
    return await (answer(request, found) if isinstance(found, Call) else scoring.answer(request, found))


async def _reader_of_texts(request: Request) -> Callable[[Fields], Call] | None:
    """Return how texts are read for the models that are served; None: no model makes vectors."""
    for output, read_body in (("dense", tei.embed), ("sparse", tei.embed_sparse)):
        if await service_of(request).first_with(output):
            return read_body
    return None


async def write_tokens(request: Request, read_body: Callable[[Fields], TokenCall]) -> Response:
    """Answer a request about tokens."""
    service, timing = service_of(request), request.state.timing
    call: TokenCall = await read(request, BODY, convert=lambda body: read_body(Fields(body)))
    model = await model_of(request, call.model, None)
    done = await unless_gone(request, service.with_tokenizer(model, call.work, call.texts, timing))
    return json_answer(done, timing, call.warnings)


def about_tokens(read_body: Callable[[Fields], TokenCall]) -> Endpoint:
    """Return the endpoint of a route about tokens whose body `read_body` reads."""

    async def endpoint(request: Request) -> Response:
        return await write_tokens(request, read_body)

    return endpoint


async def infinity_models(request: Request) -> Response:
    """GET /models, /infinity/models"""
    service = service_of(request)
    named = service.configured()
    served = [info for info in await service.infos() if info.loaded or info.name in named]
    return json_answer(infinity.models(served), request.state.timing, [])


async def info(request: Request) -> Response:
    """GET /info: of the first model that scores, else of the first one; clients ask before they rerank"""
    service = service_of(request)
    name = await model_of(request, await service.first_with("score"), None)
    pooling = await service.pooling(name)
    return json_answer(tei.info(await service.info(name), pooling, service.config), request.state.timing, [])


ROUTES = [
    *(Route(path, encoding(openai.embeddings), methods=["POST"]) for path in OPENAI),
    *(
        Route(prefix + path, encoding(read_body), methods=["POST"])
        for prefix in ("", "/tei")
        for path, read_body in TEI.items()
    ),
    *(
        Route(prefix + path, about_tokens(read_body), methods=["POST"])
        for prefix in ("", "/tei")
        for path, read_body in TOKENS.items()
    ),
    *(Route(path, anything, methods=["POST"]) for path in dialects.ANY),
    *(Route(path, infinity_models) for path in infinity.MODELS),
    *(Route(prefix + INFO, info) for prefix in ("", "/tei")),
]
