"""The inference and model routes. Steps ① and ⑨ of a request in ARCHITECTURE.md."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sie_server.api import codec, openapi, visible
from sie_server.api.edge.bodies import unless_gone
from sie_server.api.edge.deadline import check_unread
from sie_server.api.edge.paths import up_to_root
from sie_server.api.pages import examples, page
from sie_server.api.reading import encoded, read, service_of
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import EncodeRequest, EncodeResponse, ModelEntry, ModelInfo, ModelList, ScoreRequest

METRICS = "text/plain; version=0.0.4; charset=utf-8"
ENTRY_FIELDS = ModelEntry.__struct_fields__
Run = Callable[[str, Any, RequestTiming], Coroutine[Any, Any, Any]]


async def score(request: Request) -> Response:
    """POST /v1/score/{model}"""
    return await _answer(request, ScoreRequest, service_of(request).score)


async def encode(request: Request) -> Response:
    """POST /v1/encode/{model}"""
    return await _answer(request, EncodeRequest, service_of(request).encode)


async def inspect(request: Request) -> Response:
    """POST /v1/inspect/{model}"""
    return await _answer(request, ScoreRequest, service_of(request).inspect)


async def _answer(request: Request, kind: type[Any], run: Run) -> Response:
    timing: RequestTiming = request.state.timing
    service, model = service_of(request), request.path_params["model"]
    if run != service.inspect:  # which does not use the device
        check_unread(request, model)
    decoded = await read(request, kind, codec.request_media(request.headers.get("content-type")))
    result = await unless_gone(request, run(model, decoded, timing))
    media = codec.response_media(request.headers.get("accept"))
    if isinstance(result, EncodeResponse):
        content = await encoded(request, result, lambda: codec.encode(result, media))
    else:
        content = codec.encode(result, media)
    return Response(content, media_type=media, headers=timing.headers())


async def list_models(request: Request) -> Response:
    """GET /v1/models"""
    return _models(request, await service_of(request).infos())


async def list_rerankers(request: Request) -> Response:
    """GET /nim/v1/models, /vllm/v1/models: their clients expect only models that are served"""
    service = service_of(request)
    named = service.configured()
    served = [info for info in await service.infos() if info.loaded or info.name in named]
    return _models(request, [info for info in served if info.model_type != "embedding"])


async def get_model(request: Request) -> Response:
    """GET /v1/models/{model}"""
    [info] = visible.model_infos(request, [await service_of(request).info(request.path_params["model"])])
    return _json(info)


async def metrics(request: Request) -> Response:
    """GET /metrics"""
    return Response(await service_of(request).metrics_text(), media_type=METRICS)


async def openapi_json(request: Request) -> Response:
    """GET /openapi.json"""
    service = service_of(request)
    served = examples.of_models([await service.info(name) for name in service.configured()])
    return Response(openapi.document_json(served, up_to_root(request.scope)), media_type=codec.JSON)


async def docs(request: Request) -> Response:
    """GET /docs"""
    return HTMLResponse(page.html(up_to_root(request.scope)))


async def docs_file(request: Request) -> Response:
    """GET /docs/static/{name}: from memory, because the route needs no key"""
    name = request.path_params["name"]
    if name not in page.FILES:
        raise HTTPException(404)
    return Response(page.file(name), media_type=page.FILES[name])


def _models(request: Request, infos: list[ModelInfo]) -> Response:
    infos = visible.model_infos(request, infos)
    entries = [ModelEntry(**{name: getattr(info, name) for name in ENTRY_FIELDS}) for info in infos]
    return _json(ModelList(infos, entries))


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type=codec.JSON)
