"""Arrays from callers: the SDK's arrays are decoded unchanged, and anything else is a 400 that names the reason."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sie_sdk.codec import encode_body
from sie_server.arrays import DTYPES, Encoded, array_of
from sie_server.errors import InvalidInput

DATA = np.arange(6, dtype="<f4").tobytes()
MAP: dict[bytes, Any] = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, 3], b"data": DATA}


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_arrays_of_the_sdk_are_decoded_unchanged(code: str) -> None:
    sent = (np.arange(12) % 2).reshape(3, 4).astype(code)
    got = array_of(msgspec.msgpack.decode(encode_body(sent)), "$")
    assert got.dtype == sent.dtype.newbyteorder("=")
    assert got.flags.owndata
    np.testing.assert_array_equal(got, sent)


def test_lists_extensions_and_rows() -> None:
    expected = np.arange(6, dtype="f4").reshape(2, 3)
    np.testing.assert_array_equal(array_of([[0, 1, 2], [3, 4.0, 5]], "$"), expected)
    for keys in (lambda k: k, bytes.decode):  # binary and text keys
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
        (MAP | {b"shape": [0, 2**63], b"data": b""}, "too large"),
        (MAP | {b"shape": [2**63, 0], b"data": b""}, "too large"),
        (MAP | {b"shape": [2**64 - 1, 0], b"data": b""}, "too large"),
        (MAP | {b"shape": [0, *[2**31] * 7], b"data": b""}, "too large"),
        (MAP | {b"shape": [2**32, 2**32], b"data": b""}, "bytes of data"),
        (MAP | {b"shape": [2**63]}, "bytes of data"),
        (MAP | {b"shape": [2.0, 3.0]}, "shape"),
        (MAP | {b"shape": [[2, 3]]}, "shape"),
        (MAP | {b"shape": None}, "shape"),
        (MAP | {b"shape": [0, 2**63], b"data": b"", b"type": "|b1"}, "too large"),
        ([MAP | {b"shape": [0, 2**40], b"data": b""}] * 3, "too large"),
        ({b"nd": False, b"type": "<f4", b"data": b"123"}, "got 3"),
        (MAP | {b"nd": False}, "unknown keys shape"),
        (MAP | {str(i).encode(): 1 for i in range(5000)}, "and 4990 more"),
        (MAP | {b"x" * 2**20: 1}, "unknown keys xxx"),
        (MAP | {b"type": "<f4" * 2**20}, "type"),
        (MAP | {b"type": msgspec.msgpack.Ext(78, b"")}, "type"),
        (MAP | {b"data": msgspec.msgpack.Ext(78, DATA)}, "expected bytes"),
        ([[msgspec.msgpack.Ext(78, DATA)]], "numbers"),
        ([msgspec.msgpack.Ext(78, b"\xdd\xff\xff\xff\xff")], "does not contain"),
        (msgspec.msgpack.Ext(78, b"\xdf\xff\xff\xff\xff"), "does not contain"),
        (msgspec.msgpack.Ext(78, b"\x91" * 5000), "does not contain"),
        (msgspec.msgpack.Ext(78, b"\x81\x90\x01"), "nd"),
        (msgspec.msgpack.Ext(78, b"\x81\x80\x01"), "does not contain"),
        (msgspec.msgpack.Ext(78, b"\x81\xa1\xff\x01"), "does not contain"),
        (
            msgspec.msgpack.Ext(78, msgspec.msgpack.encode(msgspec.msgpack.Ext(78, b"\x80"))),
            "does not contain",
        ),
        (msgspec.msgpack.Ext(-1, b"\xff" * 4), "extension type -1"),
        ([[2**64, 1]], "numbers"),
        ([[-(2**64), 1.0]], "numbers"),
        ([[[]]] * 2 + [[]], "equal length"),
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
    assert len(caught.value.message) < 1500


def encoded(packed: bytes) -> Encoded:
    return Encoded(msgspec.Raw(packed), is_msgpack=True)


def test_an_encoded_array_is_decoded_within_a_budget() -> None:
    rows = [[0.5, 1.0]] * 10  # with their lists, 31 values
    in_json, in_msgpack = (
        Encoded(msgspec.Raw(msgspec.json.encode(rows)), is_msgpack=False),
        encoded(encode_body(rows)),
    )
    assert in_json.decode("$.x")[0] == in_msgpack.decode("$.x")[0] == rows
    assert in_msgpack.decode("$.x", 31)[1] == 31
    with pytest.raises(InvalidInput, match=r"values.* - at `\$\.x`"):
        in_msgpack.decode("$.x", 30)
    large = np.zeros((1000, 100), "f4")  # an array map of any size is few values
    value, count = encoded(encode_body(large)).decode("$.x", 20)
    np.testing.assert_array_equal(array_of(value, "$.x"), large)
    assert count < 20


@pytest.mark.parametrize("number", ["1e400", "-1e999", "9" * 5000, "1e99999999999999999999"])
def test_numbers_that_no_float_has_are_refused(number: str) -> None:
    with pytest.raises(InvalidInput, match=r" - at `\$\.x"):
        array_of(Encoded(msgspec.Raw(f"[[{number}]]".encode()), is_msgpack=False).decode("$.x")[0], "$.x")


@pytest.mark.parametrize(
    "packed",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x81\x80\x01",
        b"\xa1\xff",
        b"\xd6\xff\xff\xff\xff\xff",  # timestamps
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x0c\xff" + b"\xff" * 12,
        b"\xc7\x05\xff" + b"\xff" * 5,
        b"\xc1",
    ],
)
def test_bytes_that_are_no_array_are_refused(packed: bytes) -> None:
    with pytest.raises(InvalidInput, match=r" - at `\$\.x"):
        array_of(encoded(packed).decode("$.x")[0], "$.x")
