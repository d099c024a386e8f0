"""Encode and decode bodies as MessagePack or JSON. See docs/http-api.md#content-negotiation."""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec.structs import force_setattr

from sie_server.arrays import Encoded
from sie_server.errors import InvalidInput, cut, reason_at
from sie_server.room import check_room
from sie_server.wire import EncodeParams, EncodeRequest, Item, ScoreRequest, is_plain
from sie_server.wire.limits import TOO_DEEP, check_json

MSGPACK, JSON = "application/msgpack", "application/json"
MSGPACK_TYPES = (MSGPACK, "application/x-msgpack")
Body = TypeVar("Body")

OPTIONS_BYTES = 2**16
MEDIA = ("images", "audio", "video", "document")  # fields of items that are refused if present
# first byte of a map and of null
MAPS = {JSON: frozenset(b"{"), MSGPACK: frozenset([*range(0x80, 0x90), 0xDE, 0xDF])}
NULLS = {JSON: ord("n"), MSGPACK: 0xC0}


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
    """Decode a request body. Fields that the server does not read are skipped.

    Raises:
        InvalidInput: the body is malformed, has a wrong type (with the path of the field), is not UTF-8, or contains
            too much (`wire.limits`).
    """
    check_room(2 * len(body))  # msgspec ends the process if a text gets no memory
    if media == JSON:
        check_json(body)
    decoded: Body = _convert(body, media, kind)
    if isinstance(decoded, ScoreRequest):
        _finish([decoded.query, *decoded.items], media, len(body), first=-1)
        _convert_options(decoded, "$.options", media)
    elif isinstance(decoded, EncodeRequest):
        _finish(decoded.items, media, len(body))
        if decoded.params:
            _convert_options(decoded.params, "$.params.options", media)
    return decoded


def _convert(body: bytes | msgspec.Raw, media: str, kind: Any, path: str = "$") -> Any:
    name = "msgpack" if media == MSGPACK else "JSON"
    try:
        return (msgspec.msgpack if media == MSGPACK else msgspec.json).decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(reason_at(error, path)) from None
    except msgspec.DecodeError as error:
        is_binary = media == JSON and memoryview(body)[0] >= 0x80  # as every map of msgpack is
        hint = "; send msgpack with the header Content-Type: application/msgpack" if is_binary else ""
        raise InvalidInput(f"the body is not valid {name}: {cut(str(error))}{hint}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body contains a string that is not valid UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidInput(TOO_DEEP) from None


def _finish(items: list[Item], media: str, size: int, first: int = 0) -> None:
    """Drop the skipped values of items, which keep the whole body in memory. Only arrays are needed later.

    `first` is the index of the first item; -1 is the query.
    """
    arrays: list[tuple[Item, msgspec.Raw]] = []
    for i, item in enumerate(items, first):
        if item.metadata is None and is_plain(item):
            continue
        if item.metadata is not None:
            if not _is_null(item.metadata, media) and _first(item.metadata) not in MAPS[media]:
                path = f"$.items[{i}]" if i >= 0 else "$.query"
                raise InvalidInput(f"expected a map or null - at `{path}.metadata`")
            force_setattr(item, "metadata", None)
        for name in MEDIA:
            if getattr(item, name) is not None:
                force_setattr(item, name, None if _is_null(getattr(item, name), media) else True)
        if item.multivector is not None:
            arrays.append((item, item.multivector))
    is_small = 2 * sum(memoryview(raw).nbytes for _, raw in arrays) < size
    for item, raw in arrays:
        array = Encoded(raw.copy() if is_small else raw, is_msgpack=media == MSGPACK)
        force_setattr(item, "multivector", None if _is_null(raw, media) else array)


def _convert_options(owner: ScoreRequest | EncodeParams, path: str, media: str) -> None:
    raw = owner.options
    if raw is None:
        return
    if memoryview(raw).nbytes > OPTIONS_BYTES:
        raise InvalidInput(f"the options are larger than {OPTIONS_BYTES // 1024} KiB - at `{path}`")
    force_setattr(owner, "options", _convert(raw, media, dict[str, Any] | None, path))


def _first(raw: msgspec.Raw) -> int:
    return memoryview(raw)[0]


def _is_null(raw: msgspec.Raw, media: str) -> bool:
    return _first(raw) == NULLS[media]


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
