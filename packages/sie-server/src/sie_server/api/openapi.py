"""The OpenAPI document, made from the structs that decode the requests, and a page that renders it offline."""

from __future__ import annotations

from typing import Any

import msgspec

from sie_server import __version__, wire
from sie_server.api import dialects, openai
from sie_server.api.codec import JSON, MSGPACK

REF = "#/components/schemas/{name}"


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds = [
        wire.ScoreRequest,
        wire.ScoreResponse,
        wire.InspectResponse,
        wire.EncodeRequest,
        wire.EncodeResponse,
        wire.ModelList,
        wire.ModelInfo,
        wire.Options,
        wire.ErrorBody,
        wire.AdminLoadRequest,
        wire.AdminUnloadRequest,
        wire.AdminSwapRequest,
        wire.AdapterLoadRequest,
        wire.AdapterUnloadRequest,
        wire.AdminAnswer,
        openai.EmbeddingsRequest,
        openai.EmbeddingsResponse,
    ]
    _, components = msgspec.json.schema_components(kinds, ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "SIE", "version": __version__, "description": "Reranking and encoding over HTTP."},
        "paths": {
            "/v1/score/{model}": {"post": _posted("Rank candidates by relevance to a query", "Score")},
            "/v1/encode/{model}": {"post": _posted("Turn texts into vectors", "Encode")},
            "/v1/inspect/{model}": {
                "post": _posted("Show what a score request would read", "Score", "InspectResponse")
            },
            "/v1/embeddings": {
                "post": _posted("Turn texts into vectors, in OpenAI's shape", "Embeddings", own=False)
            },
            **{path: {"post": _spoken(path)} for path in dialects.RERANK},
            **{path: {"post": _spoken(path, "Vectors")} for path in dialects.EMBED},
            **{path: {"get": _free("The first model, as TEI tells of itself")} for path in dialects.INFO},
            "/v1/admin/load": {"post": _administered("Load a model now", "AdminLoad")},
            "/v1/admin/unload": {"post": _administered("Free a model's memory", "AdminUnload")},
            "/v1/admin/swap": {"post": _administered("Replace a model's weights as it serves", "AdminSwap")},
            "/v1/admin/adapters/load": {"post": _administered("Load a LoRA adapter", "AdapterLoad")},
            "/v1/admin/adapters/unload": {"post": _administered("Free a LoRA adapter", "AdapterUnload")},
            "/v1/models": {"get": _got("All models the server knows", "ModelList")},
            "/v1/models/{model}": {"get": _got("One model", "ModelInfo", with_model=True)},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],  # without keys in the configuration, none is needed
    }


def _model_parameter() -> dict[str, Any]:
    return {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Model id; its slash may be sent raw or as %2F",
        "example": "sie/mini-en",
    }


def _posted(summary: str, kind: str, answer: str | None = None, *, own: bool = True) -> dict[str, Any]:
    """`own` routes name the model in the path and speak msgpack, too."""
    return {
        "summary": summary,
        "parameters": [_model_parameter()] if own else [],
        "requestBody": {"required": True, "content": _content(f"{kind}Request", own=own)},
        "responses": {
            "200": {"description": "OK", "content": _content(answer or f"{kind}Response", own=own)},
            **_errors(),
        },
    }


def _spoken(path: str, summary: str = "Rerank") -> dict[str, Any]:
    """A path of other vendors' clients, whose bodies are read field by field (docs/dialects.md)."""
    spoken = dialects.PATHS[path]
    examples = {dialect.name: {"value": dialect.example} for dialect in spoken}
    if path in dialects.EMBED:
        examples = {"TEI": {"value": {"inputs": ["Stars burn hydrogen."]}}}
    body = {JSON: {"schema": {"type": "object"}, "examples": examples}}
    return {
        **_free(f"{summary}, as clients of {' or '.join(dialect.name for dialect in spoken)} ask"),
        "requestBody": {"required": True, "content": body},
    }


def _free(summary: str) -> dict[str, Any]:
    """A route whose answers and errors have the form of another vendor's API."""
    anything: dict[str, Any] = {"content": {JSON: {"schema": {}}}}
    errors = {status: {**error, **anything} for status, error in _errors().items()}
    answers = {"200": {"description": "OK", **anything}, **errors}
    return {"summary": summary, "parameters": [], "responses": answers}


def _administered(summary: str, kind: str) -> dict[str, Any]:
    route = _posted(summary, kind, "AdminAnswer", own=False)
    route["responses"]["409"] = {**_errors()["400"], "description": "The model is changing already"}
    return route


def _got(summary: str, kind: str, *, with_model: bool = False) -> dict[str, Any]:
    answer = {"description": "OK", "content": {JSON: {"schema": {"$ref": REF.format(name=kind)}}}}
    return {
        "summary": summary,
        "parameters": [_model_parameter()] if with_model else [],
        "responses": {"200": answer, **_errors()},
    }


def _content(kind: str, *, own: bool) -> dict[str, Any]:
    schema = {"schema": {"$ref": REF.format(name=kind)}}
    return {JSON: schema, MSGPACK: schema} if own else {JSON: schema}


def _errors() -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": REF.format(name="ErrorBody")}}}
    meanings = {
        "400": "Bad input",
        "401": "API key missing or unknown",
        "403": "Not allowed with this API key, or from there",
        "404": "Unknown model",
        "413": "Body too large",
        "500": "Model error",
        "502": "Model cannot be loaded",
        "503": "Busy or loading; see Retry-After",
    }
    return {status: {"description": text, "content": content} for status, text in meanings.items()}


DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SIE API</title>
<link rel="stylesheet" href="/docs/static/swagger-ui.css"></head>
<body><div id="ui"></div><script src="/docs/static/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui"})</script></body></html>
"""
