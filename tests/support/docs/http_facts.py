"""Routes, fields, headers, errors and metrics of the code, in the notation of docs/http-api.md.

Everything is cached: the code does not change while tests run.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
from msgspec import inspect
from starlette.routing import Route
from starlette.testclient import TestClient

import sie_server
from sie_sdk import flow
from sie_sdk.errors import error_for
from sie_server import errors, keys, wire
from sie_server.api import dialects, openapi
from sie_server.api.app import create_app
from sie_server.api.edge import cors, gate
from sie_server.api.embeddings import openai
from sie_server.config import Secret, ServerConfig
from sie_server.serving.service import Service

SERVER = Path(sie_server.__file__).parent
INFER_KEY = "0123456789abcdef"
CONFIG = ServerConfig(device="cpu", model=(), offline=True, api_keys=Secret(INFER_KEY))
HEADER = re.compile(r"(?i)x-[a-z-]+|retry-after|www-authenticate|allow|accept-encoding")
# set by starlette: media types of responses, the methods of a 405, CORS
STARLETTE_SENDS = {"content-type", "allow", "access-control-allow-origin"}
STARLETTE_READS = {"origin"}

Facts = set[tuple[str, ...]]


# ── routes ──


@cache
def routes() -> Facts:
    """Return method, path and scope of every route of the application and of the OpenAPI document."""
    found: Facts = set()
    for route in create_app(CONFIG, Service).routes:
        assert isinstance(route, Route)
        methods = (route.methods or set()) - {"HEAD"}
        found |= {(method, route.path.replace(":path}", "}")) for method in methods}
    for path, operations in openapi.document()["paths"].items():
        found |= {(method.upper(), path) for method in operations}
    return {(method, path, scope_of(path, method)) for method, path in found}


def scope_of(path: str, method: str = "POST") -> str:
    """Return the scope that the gate requires of a browser for a path."""
    guard, browser = gate.Gate(keys.read_keys(CONFIG)), (b"accept", b"text/html")
    request = {"path": path, "method": method, "headers": [browser]}
    try:
        guard.admit(request)
    except errors.Unauthorized:
        try:
            known = (b"authorization", f"Bearer {INFER_KEY}".encode())
            guard.admit({**request, "headers": [browser, known]})
        except errors.Forbidden:
            return "admin"
        return "infer"
    return "open"


@cache
def dialect_paths() -> Facts:
    """Return each dialect path and the names of its dialects."""
    return {(path, ", ".join(each.name for each in found)) for path, found in dialects.PATHS.items()}


# ── fields ──

ANYTHING = "any"
REQUESTS = re.compile(r".*(Request|Params)|Item|Options")


@cache
def structs() -> list[type[msgspec.Struct]]:
    """Return all structs of requests and responses. A profile has the fields of options."""
    values = {**vars(wire), **vars(openai)}.values()
    found = [v for v in values if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    return [struct for struct in dict.fromkeys(found) if struct not in (msgspec.Struct, wire.Profile)]


@cache
def fields(struct: type[msgspec.Struct]) -> dict[str, tuple[str, str]]:
    """Return field → type, and default (requests) or presence (responses)."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    found = {}
    for field in info.fields:
        text = _type(field.type)
        if REQUESTS.fullmatch(struct.__name__):
            default = "null" if field.default is None else f"`{field.default}`"
            found[field.encode_name] = (
                text.removesuffix(" or null"),
                "required" if field.required else default,
            )
        else:
            written = field.default, field.default_factory
            is_unset = not field.required and written == (msgspec.NODEFAULT, msgspec.NODEFAULT)
            found[field.encode_name] = text, "optional" if is_unset else "always"
    return found


def _range(least: int | None, most: int | None) -> str:
    """Return a range of lengths in words; an empty string if every length is allowed."""
    if least and most:
        return f"exactly {least}" if least == most else f"{least}–{most}"
    return f"at least {least}" if least else f"at most {most}" if most else ""


def _type(kind: inspect.Type) -> str:
    """Return a type in words, with the values of a literal sorted."""
    match kind:
        case inspect.Metadata():
            return _type(kind.type)
        case inspect.StrType():
            numbers = _range(kind.min_length, kind.max_length)
            length = f", {numbers} characters" if numbers else ""
            return f"string{length}" + (f", pattern `{kind.pattern}`" if kind.pattern else "")
        case inspect.IntType() | inspect.FloatType():
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            return name if kind.ge is None else f"{name} ≥ {kind.ge:g}"
        case inspect.BoolType():
            return "boolean"
        case inspect.LiteralType():
            values = [f"`{value}`" for value in sorted(kind.values)]
            return f"one of {', '.join(values)}" if values[1:] else f"constant {values[0]}"
        case inspect.ListType():
            numbers = _range(kind.min_length, kind.max_length)
            return f"list of {_type(kind.item_type)}" + (f", {numbers}" if numbers else "")
        case inspect.DictType(value_type=inspect.AnyType()):
            return "map"
        case inspect.DictType():
            return f"map of {_type(kind.key_type)} to {_type(kind.value_type)}"
        case inspect.StructType():
            return kind.cls.__name__
        case inspect.UnionType():
            return " or ".join(_type(part) for part in kind.types if "Unset" not in type(part).__name__)
        case inspect.NoneType():
            return "null"
    return ANYTHING


# ── headers, by their lower-case names ──


@cache
def response_headers() -> Facts:
    """Return header names: keys of dicts and of assignments to headers in all code that writes responses."""
    found = {dialects.dialect.WARNINGS, *cors.RESPONSE_HEADERS}
    for node in _nodes("api", "errors.py", "serving/metrics.py"):
        if isinstance(node, ast.Dict):
            found |= {text for key in node.keys if (text := _text(key)) and HEADER.fullmatch(text)}
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("headers"):
            found |= {text for text in [_text(node.slice)] if text}
    return {(name.lower(),) for name in found | STARLETTE_SENDS}


@cache
def request_headers() -> Facts:
    """Return arguments of `headers.get` and of the gate's `_headers`, and the headers of proxies and of CORS."""
    found = {*cors.REQUEST_HEADERS, *(name.decode() for name in gate.PROXY_HEADERS)}
    for node in _nodes("api"):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("headers.get", "_headers")):
            found |= {text for argument in node.args if (text := _text(argument))}
    return {(name.lower(),) for name in found | STARLETTE_READS}


def _nodes(*parts: str) -> Iterator[ast.AST]:
    for part in parts:
        path = SERVER / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield from ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def _text(node: ast.AST | None) -> str:
    """Return the text or ASCII bytes of a constant, otherwise the empty string."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


# ── errors and metrics ──


def error_classes(base: type[errors.SIEError] = errors.SIEError) -> Iterator[type[errors.SIEError]]:
    """Return all error classes with a code."""
    yield base
    for kind in base.__subclasses__():
        yield from error_classes(kind)


@cache
def error_codes() -> Facts:
    """Return code, status, whether it has Retry-After, how often the client retries it, and its exception."""
    classes = {kind.__name__: kind for kind in error_classes()}
    waiting = {
        classes[name].code
        for node in _nodes(".")
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in classes
        if any(keyword.arg == "retry_after_s" for keyword in node.keywords)
    }
    found: Facts = set()
    for kind in classes.values():
        client = error_for(kind.status, kind.code, "", request_id=None, details={})
        reply = flow.Reply(kind.status, {"x-sie-server-version": "1.0.0"}, b"")
        limit = flow.limit_of(client, reply, answered=True)[1] if client.retryable else 0
        retried = "until the deadline" if limit == math.inf else f"{limit} times" if limit else "no"
        after = "yes" if kind.code in waiting else "no"
        found.add((kind.code, str(kind.status), after, retried, type(client).__name__))
    return found


@cache
def metrics() -> Facts:
    """Return name and type of every metric of /metrics."""
    with TestClient(create_app(CONFIG, Service)) as client:
        text = client.get("/metrics").text
    found = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    return {(name, kind) for name, kind in found if not name.endswith("_created")}
