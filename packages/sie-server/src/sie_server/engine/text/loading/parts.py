"""The parts of a `tokenizer.json` that a dataclass names. The vocabulary, which has megabytes, is not built."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

Parts = TypeVar("Parts")


def read_parts(content: bytes, kind: type[Parts]) -> Parts:
    """Return the fields of the dataclass `kind`; other keys are skipped.

    Raises:
        ValueError: it is not JSON of that form.
        RecursionError: it is nested too deeply.
    """
    try:
        import msgspec
    except ModuleNotFoundError:  # this takes time and memory for the vocabulary
        return _built(json.loads(content), kind)
    return msgspec.json.decode(content, type=kind)


def _built(raw: Any, kind: type[Parts]) -> Parts:
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, got {type(raw).__name__}")
    hints = get_type_hints(kind)
    values = {field.name: raw[field.name] for field in fields(kind) if field.name in raw}  # type: ignore[arg-type]
    try:
        return kind(**{n: _built(v, hints[n]) if is_dataclass(hints[n]) else v for n, v in values.items()})
    except TypeError as error:
        raise ValueError(f"a field is missing: {error}") from None
