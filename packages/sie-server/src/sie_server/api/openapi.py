"""The OpenAPI document, generated from the wire structs. The page /docs renders it (`api.pages`)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec

from sie_server import __version__, wire
from sie_server.api import dialects
from sie_server.api.codec import JSON, MSGPACK
from sie_server.api.edge.paths import LIVENESS, READINESS
from sie_server.api.embeddings import infinity, openai, routes, tei
from sie_server.api.pages.examples import Examples

REF = "#/components/schemas/{name}"
# the bodies that the document describes, and the structs inside them
BODIES = [
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
    wire.KeyList,
    openai.EmbeddingsRequest,
    openai.EmbeddingsResponse,
]


@lru_cache(maxsize=4)
def document_json(examples: Examples, root: str) -> bytes:
    """Return `document` as JSON."""
    return msgspec.json.encode(document(examples, root))


def document(examples: Examples = Examples(), root: str = "./") -> dict[str, Any]:  # noqa: B008 - it is frozen
    """Return the OpenAPI 3.1 document; `root` is the address of the server's root, relative to the document's own."""
    _, components = msgspec.json.schema_components(BODIES, ref_template=REF)
    return {
        "openapi": "3.1.0",
        "servers": [{"url": root}],
        "info": {"title": "SIE", "version": __version__, "description": "Reranking and encoding over HTTP."},
        "paths": {
            **_inference(examples),
            **_vendors(examples),
            **_probes(),
            **_admins(examples),
            "/v1/models": {"get": _got("List all models", "ModelList")},
            "/v1/models/{model}": {"get": _got("Get one model", "ModelInfo", examples.scorer)},
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # a key is optional because a server without configured keys needs none
        "security": [{}, {"key": []}],
    }


def _inference(examples: Examples) -> dict[str, Any]:
    score = _posted(examples, "Rank documents by relevance to a query", "Score")
    inspect = _posted(examples, "Show the token sequences of a score request", "Score", "InspectResponse")
    embed = _posted(examples, "Encode texts as vectors, in OpenAI's format", "Embeddings", own=False)
    return {
        "/v1/score/{model}": {"post": score},
        "/v1/encode/{model}": {"post": _posted(examples, "Encode texts as vectors", "Encode")},
        "/v1/inspect/{model}": {"post": inspect},
        **{path: {"post": embed} for path in routes.OPENAI},
    }


def _vendors(examples: Examples) -> dict[str, Any]:
    invoke = {**_dialect(dialects.INVOKE), "parameters": [_model_parameter(examples.scorer)]}
    tei_paths = {path: path.removeprefix("/tei") for path in dialects.TEI_ONLY}
    info = _foreign("Information on the first model, in TEI's format")
    models = _foreign("The models served, in infinity's format")
    return {
        **{path: {"post": _dialect(path)} for path in dialects.RERANK},
        dialects.INVOKE: {"post": invoke},
        **{
            path: {"post": _dialect(path, "Vectors or tokens", tei.EXAMPLES[name])}
            for path, name in tei_paths.items()
            if name in tei.EXAMPLES
        },
        **{path: {"get": info} for path, name in tei_paths.items() if name in dialects.INFO},
        **{path: {"post": _dialect(path, "Anything", tei.EXAMPLES["/embed"])} for path in dialects.ANY},
        **{path: {"get": models} for path in infinity.MODELS},
    }


def _probes() -> dict[str, Any]:
    return {
        **{path: {"get": _probe("Liveness")} for path in LIVENESS},
        **{path: {"get": _probe("Readiness")} for path in READINESS},
        "/version": {"get": _foreign("The server's version, in vLLM's format")},
        "/meta": {"get": _foreign("The server and its models, for Weaviate")},
    }


def _admins(examples: Examples) -> dict[str, Any]:
    posted = {
        "load": ("Load a model now", "AdminLoad"),
        "unload": ("Unload a model", "AdminUnload"),
        "swap": ("Replace a model's weights while it serves", "AdminSwap"),
        "adapters/load": ("Load a LoRA adapter", "AdapterLoad"),
        "adapters/unload": ("Unload a LoRA adapter", "AdapterUnload"),
    }
    return {
        **{
            f"/v1/admin/{path}": {"post": _admin(examples, summary, kind)}
            for path, (summary, kind) in posted.items()
        },
        "/v1/admin/keys": {"get": _got("Show the use and limits of the API keys", "KeyList")},
    }


def _model_parameter(example: str) -> dict[str, Any]:
    return {
        "name": "model",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Model id; a slash may be sent as / or %2F",
        "example": example,
    }


def _posted(
    examples: Examples, summary: str, kind: str, answer: str | None = None, *, own: bool = True
) -> dict[str, Any]:
    """Describe a POST route. An `own` route has the model in its path and also accepts MessagePack."""
    body = _content(f"{kind}Request", own=own)
    body[JSON]["example"] = examples.body(f"{kind}Request")
    model = examples.encoder if kind == "Encode" else examples.scorer
    return {
        "summary": summary,
        "parameters": [_model_parameter(model)] if own else [],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "OK", "content": _content(answer or f"{kind}Response", own=own)},
            **_errors(),
        },
    }


def _probe(summary: str) -> dict[str, Any]:
    """Describe a health probe, which needs no key."""
    answers = {"200": {"description": "OK"}, "204": {"description": "OK"}, "503": {"description": "Not so"}}
    return {"summary": summary, "parameters": [], "security": [{}], "responses": answers}


def _either(names: list[str]) -> str:
    """Return names as a choice, each once: A, B or C. A name may be such a choice itself."""
    *others, last = dict.fromkeys(each for name in names for each in name.split(" or "))
    return f"{', '.join(others)} or {last}" if others else last


def _dialect(path: str, summary: str = "Rerank", example: Any = None) -> dict[str, Any]:
    """Describe a path of a dialect, whose body is read field by field (docs/dialects.md)."""
    candidates = dialects.PATHS[path]
    examples = {dialect.name: {"value": dialect.example} for dialect in candidates}
    if example:
        examples = {"TEI": {"value": example}}
    body = {JSON: {"schema": {"type": "object"}, "examples": examples}}
    return {
        **_foreign(f"{summary}, in the dialect of {_either([dialect.name for dialect in candidates])}"),
        "requestBody": {"required": True, "content": body},
    }


def _foreign(summary: str) -> dict[str, Any]:
    """Describe a route whose responses and errors have another vendor's format."""
    anything: dict[str, Any] = {"content": {JSON: {"schema": {}}}}
    errors = {status: {**error, **anything} for status, error in _errors().items()}
    answers = {"200": {"description": "OK", **anything}, **errors}
    return {"summary": summary, "parameters": [], "responses": answers}


def _admin(examples: Examples, summary: str, kind: str) -> dict[str, Any]:
    route = _posted(examples, summary, kind, "AdminAnswer", own=False)
    route["responses"]["409"] = {
        **_errors()["400"],
        "description": "Another operation on the model is running",
    }
    return route


def _got(summary: str, kind: str, model: str | None = None) -> dict[str, Any]:
    answer = {"description": "OK", "content": {JSON: {"schema": {"$ref": REF.format(name=kind)}}}}
    return {
        "summary": summary,
        "parameters": [_model_parameter(model)] if model else [],
        "responses": {"200": answer, **_errors()},
    }


def _content(kind: str, *, own: bool) -> dict[str, Any]:
    schema = {"schema": {"$ref": REF.format(name=kind)}}
    return {media: dict(schema) for media in ((JSON, MSGPACK) if own else (JSON,))}


def _errors() -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": REF.format(name="ErrorBody")}}}
    meanings = {
        "400": "Invalid input",
        "401": "API key missing or unknown",
        "403": "The API key lacks the scope, or the caller is not local",
        "404": "Unknown model or adapter",
        "408": "The headers or the body did not arrive in time",
        "413": "Body too large",
        "429": "A limit of the API key is reached; see Retry-After",
        "431": "Headers too large",
        "500": "The model failed",
        "502": "The model cannot be loaded",
        "503": "Busy or loading; see Retry-After",
    }
    return {status: {"description": text, "content": content} for status, text in meanings.items()}
