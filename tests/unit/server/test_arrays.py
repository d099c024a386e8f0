"""Arrays from callers: what the SDK sends comes back equal; whatever is not exactly an array is a 400 that says why."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sie_sdk.codec import encode_body
from sie_server.arrays import DTYPES, array_of
from sie_server.errors import InvalidInput

DATA = np.arange(6, dtype="<f4").tobytes()
MAP: dict[bytes, Any] = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": DATA}


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_what_the_sdk_sends_comes_back(code: str) -> None:
    sent = (np.arange(12) % 2).reshape(3, 4).astype(code)
    got = array_of(msgspec.msgpack.decode(encode_body(sent)), "$")
    assert got.dtype == sent.dtype.newbyteorder("=")
    assert got.flags.owndata
    np.testing.assert_array_equal(got, sent)


def test_lists_extensions_and_rows() -> None:
    expected = np.arange(6, dtype="f4").reshape(2, 3)
    np.testing.assert_array_equal(array_of([[0, 1, 2], [3, 4.0, 5]], "$"), expected)
    for keys in (lambda k: k, bytes.decode):  # binary keys, or text
        packed = msgspec.msgpack.encode({keys(k): v for k, v in MAP.items()})
        np.testing.assert_array_equal(array_of(msgspec.msgpack.Ext(78, packed), "$"), expected)
    rows = [MAP | {b"shape": [3], b"data": row.tobytes()} for row in expected]
    np.testing.assert_array_equal(array_of(rows, "$"), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got null"),
        ("abc", "got a str"),
        ([[1, 2], [3]], "equal length"),
        ([[1, 2], [True, 3]], "numbers"),
        ([["1", "2"]], "numbers"),
        ([[1, None]], "numbers"),
        ([[10**400, 1.0]], "numbers"),
        ({}, "nd"),
        ({"nd": True}, "nd"),
        (MAP | {b"nd": 1}, "nd"),
        ({k: v for k, v in MAP.items() if k != b"data"}, "missing keys data"),
        (MAP | {b"extra": 1}, "unknown keys extra"),
        (MAP | {b"kind": b"V"}, "kind"),
        (MAP | {b"kind": b"O"}, "kind"),
        (MAP | {b"type": "|O"}, "type"),
        (MAP | {b"type": [["a", "<f4"]]}, "type"),
        (MAP | {b"type": b"<f4"}, "type"),
        (MAP | {b"data": DATA[:-1]}, "got 23"),
        (MAP | {b"data": DATA + b"x"}, "got 25"),
        (MAP | {b"data": "text"}, "expected bytes"),
        (MAP | {b"shape": [2, -3]}, "shape"),
        (MAP | {b"shape": [2, True]}, "shape"),
        (MAP | {b"shape": 6}, "shape"),
        (MAP | {b"shape": [1] * 9}, "8 dimensions, got 9"),
        (MAP | {b"shape": [10**12, 10**12]}, "bytes of data"),
        (MAP | {b"type": "|b1", b"shape": [2], b"data": b"\x01\x02"}, "neither 0 nor 1"),
        (msgspec.msgpack.Ext(5, b""), "extension type 5"),
        (msgspec.msgpack.Ext(78, b"\x80\x80"), "does not contain"),
        (msgspec.msgpack.Ext(78, DATA), "does not contain"),
        ([MAP, MAP | {b"shape": [3, 2]}], "differ in length or type"),
    ],
)
def test_anything_else_is_refused_with_its_path(value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        array_of(value, "$.items[3].multivector")
    assert "`$.items[3].multivector" in caught.value.message
