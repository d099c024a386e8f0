"""Media types and bytes ↔ wire types. Requests and answers may be msgpack or JSON, independently."""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec
import numpy as np

from sie_server.errors import InvalidInput

MSGPACK, JSON = "application/msgpack", "application/json"
MSGPACK_TYPES = (MSGPACK, "application/x-msgpack")
Body = TypeVar("Body")


def request_media(content_type: str | None) -> str:
    """msgpack when the header says so; anything else, or none, is read as JSON."""
    return MSGPACK if any(name in (content_type or "").lower() for name in MSGPACK_TYPES) else JSON


def response_media(accept: str | None) -> str:
    """msgpack unless the caller prefers JSON: names it, with a higher q-value than msgpack if it names both."""
    wanted = _qualities(accept or "*/*")
    msgpack = max((wanted[name] for name in MSGPACK_TYPES if name in wanted), default=None)
    json = wanted.get(JSON)
    return JSON if json and (msgpack is None or json > msgpack) else MSGPACK


def _qualities(accept: str) -> dict[str, float]:
    qualities = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            qualities[name] = float(quality)
        except ValueError:
            qualities[name] = 1.0
    return qualities


def decode(body: bytes, media: str, kind: type[Body]) -> Body:
    """Read a request body.

    Raises:
        InvalidInput: malformed, wrongly typed (with the path of the field), not UTF-8, or nested too deeply.
    """
    name = "msgpack" if media == MSGPACK else "JSON"
    try:
        if media == MSGPACK:
            return msgspec.msgpack.decode(body, type=kind)
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from None
    except msgspec.DecodeError as error:
        hint = "" if media == MSGPACK else "; msgpack needs the header Content-Type: application/msgpack"
        raise InvalidInput(f"the body is not valid {name}: {error}{hint}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body holds a string that is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None


def encode(value: Any, media: str) -> bytes:
    """Write an answer; arrays become msgpack maps (wire contract, section 4) or JSON lists."""
    if media == MSGPACK:
        return msgspec.msgpack.encode(value, enc_hook=_array_to_map)
    return msgspec.json.encode(value, enc_hook=_array_to_list)


def _array_to_map(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return {
            b"nd": True,
            b"type": array.dtype.str,
            b"kind": b"",
            b"shape": array.shape,
            b"data": array.tobytes(),
        }
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _array_to_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} cannot be sent")
