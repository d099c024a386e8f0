"""Encode and decode bodies as MessagePack or JSON. See docs/http-api.md#content-negotiation."""

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
    """Return the media type to decode a body as: MessagePack if the header names it, else JSON."""
    return MSGPACK if any(name in (content_type or "").lower() for name in MSGPACK_TYPES) else JSON


def response_media(accept: str | None) -> str:
    """Return the media type of the response: JSON if `accept` names and prefers it, else MessagePack."""
    qualities = _qualities(accept or "*/*")
    msgpack = max((qualities[name] for name in MSGPACK_TYPES if name in qualities), default=None)
    json = qualities.get(JSON)
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
    """Decode a request body.

    Raises:
        InvalidInput: the body is malformed, has a wrong type (with the path of the field), is not UTF-8 or is nested
            too deeply.
    """
    name = "msgpack" if media == MSGPACK else "JSON"
    try:
        if media == MSGPACK:
            return msgspec.msgpack.decode(body, type=kind)
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(str(error)) from None
    except msgspec.DecodeError as error:
        hint = "" if media == MSGPACK else "; send msgpack with the header Content-Type: application/msgpack"
        raise InvalidInput(f"the body is not valid {name}: {error}{hint}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body contains a string that is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply") from None


def encode(value: Any, media: str) -> bytes:
    """Encode a response. Arrays become array maps in MessagePack and lists in JSON (docs/http-api.md#arrays)."""
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
    raise TypeError(f"cannot encode {type(value).__name__}")


def _array_to_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"cannot encode {type(value).__name__}")
