"""Decode arrays of request bodies to numpy: msgpack array maps (docs/http-api.md#arrays) and nested lists.

An array map is `{b"nd": true, b"type": "<f4", b"kind": b"", b"shape": [n, …], b"data": bytes}`. Only the fixed-width
dtypes of `DTYPES` are accepted, the byte length must match the shape, and nothing is unpickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sie_server.errors import InvalidInput, cut, reason_at, shown
from sie_server.wire.limits import MAX_VALUES, check_msgpack

MAX_DIMS = 8
NAMED = 10  # number of unknown keys that a message names
MAX_BYTES = 2**32  # of an array, if each size 0 in its shape were 1
# msgpack extension type whose data is an array map, for clients whose maps cannot have binary keys
EXT_ARRAY = 78
# raised by msgspec: bad bytes, deep nesting, keys that Python cannot hash
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError)
_WIDE = ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
DTYPES = frozenset([order + code for order in "<>" for code in _WIDE] + ["|b1", "|i1", "|u1"])
_SCALAR_KEYS = frozenset((b"nd", b"type", b"data"))
_ARRAY_KEYS = _SCALAR_KEYS | {b"shape"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """An array as it is in the body. It is decoded when the model is known, one array at a time."""

    raw: msgspec.Raw
    is_msgpack: bool

    def decode(self, path: str, most: int = MAX_VALUES) -> tuple[Any, int]:
        """Return the value for `array_of` and the number of values in it.

        Raises:
            InvalidInput: more than `most` values, or numbers that cannot be represented.
        """
        try:
            if self.is_msgpack:
                count = check_msgpack(memoryview(self.raw), most)
                return msgspec.msgpack.decode(self.raw), count
            return msgspec.json.decode(self.raw), 0  # the body was checked as a whole
        except InvalidInput as error:
            raise _wrong(error.message, path) from None
        except msgspec.ValidationError as error:
            raise InvalidInput(reason_at(error, path)) from None
        except UNREADABLE:
            raise _wrong("the array cannot be decoded", path) from None


def array_of(value: Any, path: str) -> npt.NDArray[Any]:
    """Return the array at `path`, in native byte order and with its own memory.

    Raises:
        InvalidInput: the value is not an array, or its parts contradict each other.
    """
    if isinstance(value, msgspec.msgpack.Ext):
        value = _unpack(value, path)
    if isinstance(value, dict):
        return _from_map(value, path)
    if isinstance(value, list):
        return _from_list(value, path)
    raise _wrong(f"expected an array (a list of lists of numbers, or an array map), got {_name(value)}", path)


def _from_list(value: list[Any], path: str) -> npt.NDArray[Any]:
    if value and all(isinstance(row, msgspec.msgpack.Ext | dict) for row in value):
        rows = [array_of(row, f"{path}[{i}]") for i, row in enumerate(value)]
        if len({(row.shape, row.dtype) for row in rows}) > 1:
            raise _wrong("the rows differ in length or type", path)
        return np.stack(rows)
    try:
        if _types(value) <= {int, float} and (array := np.array(value)).dtype.kind in "fiu":
            return array
    except (ValueError, OverflowError):  # raised by numpy for rows of different lengths
        pass
    raise _wrong("expected lists of numbers of equal length", path)


def _types(value: list[Any]) -> set[type]:
    """Return the types of all leaves. They are checked because numpy reads true as 1 and "3" as a string."""
    kinds = set(map(type, value))
    if list in kinds:
        return set().union(*(_types(row) for row in value if type(row) is list), kinds - {list})
    return kinds


def _unpack(value: msgspec.msgpack.Ext, path: str) -> Any:
    if value.code != EXT_ARRAY:
        raise _wrong(f"unknown msgpack extension type {value.code}; arrays have type {EXT_ARRAY}", path)
    try:
        check_msgpack(memoryview(value.data))
        inner = msgspec.msgpack.decode(value.data)
    except (*UNREADABLE, InvalidInput):
        inner = None
    if not isinstance(inner, dict):
        raise _wrong(f"the extension of type {EXT_ARRAY} does not contain an array map", path)
    return {key.encode() if isinstance(key, str) else key: part for key, part in inner.items()}


def _from_map(value: dict[Any, Any], path: str) -> npt.NDArray[Any]:
    is_array = value.get(b"nd")
    if not isinstance(is_array, bool):
        raise _wrong("not an array map: its binary key `nd` is not a boolean", path)
    expected = _ARRAY_KEYS if is_array else _SCALAR_KEYS
    missing, unknown = expected - value.keys(), value.keys() - expected - {b"kind"}
    if missing or unknown:
        names = sorted(_key(key) for key in missing or unknown)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise _wrong(
            f"array map: {'missing' if missing else 'unknown'} keys {', '.join(names[:NAMED])}{more}", path
        )
    if value.get(b"kind", b"") not in (b"", ""):
        raise _wrong("array map: only plain arrays are supported; `kind` must be empty", path)
    shape = _shape(value[b"shape"], path) if is_array else ()
    return _array(value[b"type"], shape, value[b"data"], path)


def _shape(shape: Any, path: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _wrong("array map: `shape` is not a list of non-negative integers", path)
    if len(shape) > MAX_DIMS:
        raise _wrong(f"array map: expected at most {MAX_DIMS} dimensions, got {len(shape)}", path)
    return tuple(shape)


def _array(code: Any, shape: tuple[int, ...], data: Any, path: str) -> npt.NDArray[Any]:
    if not isinstance(code, str) or code not in DTYPES:
        raise _wrong(f"array map: type {shown(code)} is not one of {', '.join(sorted(DTYPES))}", path)
    if not isinstance(data, bytes):
        raise _wrong(f"array map: expected bytes in `data`, got {_name(data)}", path)
    expected = math.prod(shape) * int(code[2:])
    if len(data) != expected:
        raise _wrong(
            f"array map: expected {expected} bytes of data for {code} {list(shape)}, got {len(data)}", path
        )
    # numpy multiplies the sizes even if one of them is 0
    if math.prod(size or 1 for size in shape) * int(code[2:]) > MAX_BYTES:
        raise _wrong(f"array map: the shape {list(shape)} is too large", path)
    if code == "|b1" and data.translate(None, b"\x00\x01"):
        raise _wrong("array map: a boolean is neither 0 nor 1", path)
    view: npt.NDArray[Any] = np.ndarray(shape, dtype=code, buffer=data)
    return view.astype(view.dtype.newbyteorder("="))


def _key(key: Any) -> str:
    return cut(key.decode(errors="replace")) if isinstance(key, bytes) else shown(key)


def _name(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _wrong(message: str, path: str) -> InvalidInput:
    return InvalidInput(f"{message} - at `{path}`")
