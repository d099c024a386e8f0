"""Write packages/sie-ts-sdk/src/wire.ts, the wire's types in TypeScript; `--check` only reports whether it is current.

.venv/bin/python scripts/generate_ts_types.py

The source is the server's OpenAPI document, which is generated from the types that decode requests. The client's own
types are written by hand in camelCase, and its type check compares them with the generated ones (test/contract.ts).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sie_server.api import openapi

TARGET = Path(__file__).parents[1] / "packages" / "sie-ts-sdk" / "src" / "wire.ts"
HEAD = "/** The types on the wire. Generated from the server's OpenAPI document by scripts/generate_ts_types.py. */\n"
# the types of messages; the types that they refer to are added
ROOTS = (
    "ScoreRequest",
    "ScoreResponse",
    "InspectResponse",
    "EncodeRequest",
    "EncodeResponse",
    "Options",
    "ModelList",
    "ErrorBody",
)
SIMPLE = {"string": "string", "boolean": "boolean", "integer": "number", "number": "number", "null": "null"}


def typescript() -> str:
    """Return the text of the file."""
    schemas = openapi.document()["components"]["schemas"]
    return HEAD + "".join(_interface(name, schemas[name]) for name in sorted(_reachable(schemas)))


def _reachable(schemas: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_references(schemas[name]))
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield _name(schema)
        for part in schema.values():
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _name(schema: dict[str, Any]) -> str:
    name: str = schema["$ref"].rpartition("/")[2]
    return name


def _interface(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    fields = "".join(
        f"  {field}{'' if field in required else '?'}: {_type(part)};\n"
        for field, part in schema["properties"].items()
    )
    return f"\nexport interface {name} {{\n{fields}}}\n"


def _type(schema: dict[str, Any]) -> str:
    """Convert a schema to a type expression. Raises KeyError for an unsupported kind of schema."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind is None:
        return "unknown"
    if kind == "array":
        item = _type(schema["items"])
        return f"({item})[]" if " | " in item else f"{item}[]"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"Record<string, {_type(values) if isinstance(values, dict) else 'unknown'}>"
    return SIMPLE[kind]


def main() -> int:
    """Return 0 if the file is current or was written, 1 if `--check` found it outdated."""
    text = typescript()
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print("packages/sie-ts-sdk/src/wire.ts is outdated: run scripts/generate_ts_types.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
