"""Encoding of bodies as msgpack or JSON, and of numpy arrays as msgpack maps.

An array is `{b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [n, …], b"data": bytes}`, C order; a scalar
is `{b"nd": False, b"type": …, b"data": …}` (except float64, which is a Python float and is sent as a float). The
keys are msgpack *bin*, so no map with text keys can be mistaken for an array.
Only numbers and booleans of known width are accepted; no dtype can contain objects, and nothing is pickled. numpy is
imported for the first array.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from typing import TYPE_CHECKING, Any

import msgpack  # type: ignore[import-untyped]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MSGPACK = "application/msgpack"
JSON = "application/json"
MAX_DIMS = 8

_WIDE = ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
DTYPES = frozenset([order + code for order in "<>" for code in _WIDE] + ["|b1", "|i1", "|u1"])

_SCALAR_KEYS = frozenset([b"nd", b"type", b"data"])
_ARRAY_KEYS = _SCALAR_KEYS | {b"shape"}


class CodecError(ValueError):
    """A value that cannot be sent, or bytes that cannot be read."""


def encode_body(value: Any, media_type: str = MSGPACK) -> bytes:
    """Encode a value. In JSON, arrays become lists and bytes become base64. Raises CodecError."""
    try:
        if media_type == JSON:
            return json.dumps(value, default=_to_json, ensure_ascii=False, allow_nan=False).encode()
        packed: bytes = msgpack.packb(value, default=_to_map, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise CodecError(str(exc)) from exc
    return packed


def decode_body(data: bytes, media_type: str = MSGPACK) -> Any:
    """Decode a body; a trailing byte is an error. Raises CodecError."""
    try:
        if media_type == JSON:
            return json.loads(data)
        return msgpack.unpackb(data, object_hook=_from_map, ext_hook=_refuse_ext, raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        # Some of msgpack's exceptions have no message; their names describe the error.
        raise CodecError(str(exc) or type(exc).__name__) from exc


def _as_numpy(value: Any) -> NDArray[Any] | np.generic | None:
    """Return `value` if it is a numpy array or scalar, else None."""
    numpy = sys.modules.get("numpy")  # a caller with an array has imported numpy already
    return value if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)) else None


def _to_map(value: Any) -> dict[bytes, Any]:
    """Convert an array; msgpack calls this for types that it does not know."""
    found = _as_numpy(value)
    if found is None:
        raise TypeError(
            f"cannot send a {type(value).__module__}.{type(value).__qualname__}; convert it to a numpy array"
        )
    code = found.dtype.str
    if code not in DTYPES:
        raise TypeError(f"cannot send numpy dtype {found.dtype}; use numbers or booleans of at most 64 bits")
    if found.ndim > MAX_DIMS:
        raise TypeError(f"cannot send an array of {found.ndim} dimensions; at most {MAX_DIMS}")
    data = found.tobytes()  # C order for any strides
    if isinstance(found, sys.modules["numpy"].generic):
        return {b"nd": False, b"type": code, b"data": data}
    return {b"nd": True, b"type": code, b"kind": b"", b"shape": list(found.shape), b"data": data}


def _from_map(mapping: dict[Any, Any]) -> Any:
    """Convert the maps that encode arrays; msgpack calls this for every map."""
    if b"nd" not in mapping:
        return mapping
    is_array = mapping[b"nd"]
    if not isinstance(is_array, bool):
        raise CodecError(f"array map: `nd` is {is_array!r}, not a boolean")
    expected = _ARRAY_KEYS if is_array else _SCALAR_KEYS
    missing = expected - mapping.keys()
    unknown = mapping.keys() - expected - {b"kind"}
    if missing or unknown:
        raise CodecError(
            f"array map: missing keys {sorted(missing)}, unknown keys {sorted(unknown, key=repr)}"
        )
    if mapping.get(b"kind", b"") not in (b"", ""):
        raise CodecError(f"array map: kind {mapping[b'kind']!r} is not supported")
    shape = _checked_shape(mapping[b"shape"]) if is_array else ()
    array = _array(mapping[b"type"], shape, mapping[b"data"])
    return array if is_array else array[()]


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CodecError(f"array map: shape {shape!r} is not a list of non-negative integers")
    if len(shape) > MAX_DIMS:
        raise CodecError(f"array map: {len(shape)} dimensions; at most {MAX_DIMS}")
    return tuple(shape)


def _array(code: Any, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
    """Return the array in native byte order, copied so that it is writable and independent of the body."""
    if not isinstance(code, str) or code not in DTYPES:
        raise CodecError(f"array map: type {code!r} is not one of {', '.join(sorted(DTYPES))}")
    if not isinstance(data, bytes):
        raise CodecError(f"array map: data is a {type(data).__name__}, not bytes")
    expected = math.prod(shape) * int(code[2:])
    if len(data) != expected:
        raise CodecError(
            f"array map: expected {expected} bytes of data for {code} {list(shape)}, got {len(data)}"
        )
    import numpy as np

    if code == "|b1" and data.translate(None, b"\x00\x01"):
        raise CodecError("array map: a boolean is neither 0 nor 1")
    view: NDArray[Any] = np.ndarray(shape, dtype=code, buffer=data)
    return view.astype(view.dtype.newbyteorder("="))


def _refuse_ext(code: int, data: bytes) -> Any:
    raise CodecError(f"msgpack extension type {code} ({len(data)} bytes) is not part of the HTTP API")


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    found = _as_numpy(value)
    if found is None:
        raise TypeError(f"cannot send a {type(value).__module__}.{type(value).__qualname__} as JSON")
    return found.tolist()
