"""The OpenAPI document, generated from the wire structs, and a page that renders it without network access."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import swagger_ui_bundle

from sie_server import __version__, wire
from sie_server.api import dialects, openai
from sie_server.api.codec import JSON, MSGPACK

REF = "#/components/schemas/{name}"


@cache
def document_json() -> bytes:
    """Return `document` as JSON."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
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
            "/v1/score/{model}": {"post": _posted("Rank documents by relevance to a query", "Score")},
            "/v1/encode/{model}": {"post": _posted("Encode texts as vectors", "Encode")},
            "/v1/inspect/{model}": {
                "post": _posted("Show the token sequences of a score request", "Score", "InspectResponse")
            },
            "/v1/embeddings": {
                "post": _posted("Encode texts as vectors, in OpenAI's format", "Embeddings", own=False)
            },
            **{path: {"post": _dialect(path)} for path in dialects.RERANK},
            **{path: {"post": _dialect(path, "Vectors")} for path in dialects.EMBED},
            **{
                path: {"get": _foreign("Information on the first model, in TEI's format")}
                for path in dialects.INFO
            },
            "/v1/admin/load": {"post": _admin("Load a model now", "AdminLoad")},
            "/v1/admin/unload": {"post": _admin("Unload a model", "AdminUnload")},
            "/v1/admin/swap": {"post": _admin("Replace a model's weights while it serves", "AdminSwap")},
            "/v1/admin/adapters/load": {"post": _admin("Load a LoRA adapter", "AdapterLoad")},
            "/v1/admin/adapters/unload": {"post": _admin("Unload a LoRA adapter", "AdapterUnload")},
            "/v1/models": {"get": _got("List all models", "ModelList")},
            "/v1/models/{model}": {"get": _got("Get one model", "ModelInfo", with_model=True)},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # a key is optional because a server without configured keys needs none
        "security": [{}, {"key": []}],
    }


def _model_parameter() -> dict[str, Any]:
    return {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Model id; a slash may be sent as / or %2F",
        "example": "sie/mini-en",
    }


def _posted(summary: str, kind: str, answer: str | None = None, *, own: bool = True) -> dict[str, Any]:
    """Describe a POST route. An `own` route has the model in its path and also accepts MessagePack."""
    return {
        "summary": summary,
        "parameters": [_model_parameter()] if own else [],
        "requestBody": {"required": True, "content": _content(f"{kind}Request", own=own)},
        "responses": {
            "200": {"description": "OK", "content": _content(answer or f"{kind}Response", own=own)},
            **_errors(),
        },
    }


def _dialect(path: str, summary: str = "Rerank") -> dict[str, Any]:
    """Describe a path of a dialect, whose body is read field by field (docs/dialects.md)."""
    candidates = dialects.PATHS[path]
    examples = {dialect.name: {"value": dialect.example} for dialect in candidates}
    if path in dialects.EMBED:
        examples = {"TEI": {"value": {"inputs": ["Stars burn hydrogen."]}}}
    body = {JSON: {"schema": {"type": "object"}, "examples": examples}}
    return {
        **_foreign(f"{summary}, in the dialect of {' or '.join(dialect.name for dialect in candidates)}"),
        "requestBody": {"required": True, "content": body},
    }


def _foreign(summary: str) -> dict[str, Any]:
    """Describe a route whose responses and errors have another vendor's format."""
    anything: dict[str, Any] = {"content": {JSON: {"schema": {}}}}
    errors = {status: {**error, **anything} for status, error in _errors().items()}
    answers = {"200": {"description": "OK", **anything}, **errors}
    return {"summary": summary, "parameters": [], "responses": answers}


def _admin(summary: str, kind: str) -> dict[str, Any]:
    route = _posted(summary, kind, "AdminAnswer", own=False)
    route["responses"]["409"] = {
        **_errors()["400"],
        "description": "Another operation on the model is running",
    }
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
        "400": "Invalid input",
        "401": "API key missing or unknown",
        "403": "The API key lacks the scope, or the caller is not local",
        "404": "Unknown model or adapter",
        "408": "The headers or the body did not arrive in time",
        "413": "Body too large",
        "431": "Headers too large",
        "500": "The model failed",
        "502": "The model cannot be loaded",
        "503": "Busy or loading; see Retry-After",
    }
    return {status: {"description": text, "content": content} for status, text in meanings.items()}


DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SIE API</title>
<link rel="stylesheet" href="/docs/static/swagger-ui.css"></head>
<body><div id="ui"></div><script src="/docs/static/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui"})</script></body></html>
"""
DOCS_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


@cache
def docs_file(name: str) -> bytes:
    """Return one of `DOCS_FILES`."""
    return (Path(swagger_ui_bundle.swagger_ui_path) / name).read_bytes()
