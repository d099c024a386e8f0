"""The array map (docs/http-api.md#arrays), byte for byte."""

from __future__ import annotations

import json

import msgpack
import numpy as np
import pytest

from sie_sdk.codec import DTYPES, JSON, CodecError, decode_body, encode_body


def array_map(**changes: object) -> bytes:
    """A valid 2×2 float32 array map with some keys replaced; a value of `...` removes the key."""
    valid = {"nd": True, "type": "<f4", "kind": b"", "shape": [2, 2], "data": bytes(16)} | changes
    return msgpack.packb({key.encode(): value for key, value in valid.items() if value is not ...})


def test_the_contract_names_these_dtypes() -> None:
    assert len(DTYPES) == 21
    assert {"<f2", ">f8", "<i8", ">u2", "|b1", "|i1", "|u1"} <= DTYPES
    assert not DTYPES & {"|O", "<c8", "<U4", "|S3", "<M8[s]", "|V8", "=f4"}


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_array_of_every_dtype_returns_equal(code: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], dtype=code) if code == "|b1" else None
    if values is None:
        info = np.iinfo(code) if np.dtype(code).kind in "iu" else np.finfo(code)
        values = np.array([[info.min, 0, 1], [2, 3, info.max]], dtype=code)
    back = decode_body(encode_body({"v": values}))["v"]
    assert back.dtype == np.dtype(code).newbyteorder("=")
    assert back.shape == (2, 3)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_scalar_of_every_dtype_is_read(code: str) -> None:
    data = np.array([1], dtype=code).tobytes()
    back = decode_body(msgpack.packb({b"nd": False, b"type": code, b"data": data}))
    assert isinstance(back, np.generic)
    assert back.dtype == np.dtype(code).newbyteorder("=")
    assert back == 1


@pytest.mark.parametrize("code", sorted(code for code in DTYPES if code[0] != ">" and code != "<f8"))
def test_scalar_of_every_dtype_returns_equal(code: str) -> None:
    value = np.dtype(code).type(1)
    back = decode_body(encode_body(value))
    assert isinstance(back, np.generic)
    assert (back, back.dtype) == (value, value.dtype)


def test_float64_scalar_is_a_plain_float_on_the_wire() -> None:
    assert encode_body(np.float64(0.1)) == msgpack.packb(0.1)


def test_array_bytes_are_those_of_the_contract() -> None:
    sent = msgpack.unpackb(encode_body(np.array([[1.0], [2.0]], dtype="<f4")), raw=False)
    assert sent == {
        b"nd": True,
        b"type": "<f4",
        b"kind": b"",
        b"shape": [2, 1],
        b"data": b"\x00\x00\x80\x3f\x00\x00\x00\x40",
    }
    assert list(sent) == [b"nd", b"type", b"kind", b"shape", b"data"]
    scalar = msgpack.unpackb(encode_body(np.int16(-2)), raw=False)
    assert scalar == {b"nd": False, b"type": "<i2", b"data": b"\xfe\xff"}


def test_big_endian_bytes_are_read_as_big_endian() -> None:
    back = decode_body(array_map(type=">i4", shape=[2], data=b"\x00\x00\x00\x01\x00\x00\x01\x00"))
    assert back.tolist() == [1, 256]
    assert back.dtype.isnative


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 128), ()])
def test_empty_and_zero_dimensional_arrays_keep_their_shape(shape: tuple[int, ...]) -> None:
    back = decode_body(encode_body(np.zeros(shape, dtype=np.float32)))
    assert isinstance(back, np.ndarray)
    assert back.shape == shape


def test_strided_arrays_are_sent_in_c_order() -> None:
    base = np.arange(12, dtype=np.int32).reshape(3, 4)
    for view in (base.T, base[:, ::2], base[::-1], np.asfortranarray(base)):
        np.testing.assert_array_equal(decode_body(encode_body(view)), view)


def test_arrays_read_can_be_written_to() -> None:
    back = decode_body(encode_body(np.zeros(3, dtype=np.float32)))
    back += 1
    assert back.tolist() == [1, 1, 1]


def test_eight_dimensions_pass_and_nine_do_not() -> None:
    eight = np.arange(2, dtype=np.int64).reshape((1,) * 7 + (2,))
    assert decode_body(encode_body(eight)).shape == eight.shape
    with pytest.raises(CodecError, match="9 dimensions; at most 8"):
        encode_body(eight[None])
    with pytest.raises(CodecError, match="9 dimensions; at most 8"):
        decode_body(array_map(shape=[1] * 8 + [4]))


@pytest.mark.parametrize(
    "values",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([1j]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.zeros(1, dtype=[("a", "<f4")]),
        np.complex64(1),
    ],
)
def test_other_dtypes_are_not_sent(values: np.ndarray) -> None:
    with pytest.raises(CodecError, match="cannot send numpy dtype"):
        encode_body({"v": values})


@pytest.mark.parametrize(
    "code", ["|O", "O", "<c8", "<U1", "|S4", "|V4", "<M8[s]", "=f4", "f4", "<f16", "", None, 4, b"<f4"]
)
def test_other_dtypes_are_not_read(code: object) -> None:
    with pytest.raises(CodecError, match=r"type .* is not one of"):
        decode_body(array_map(type=code))


@pytest.mark.parametrize("data", [bytes(15), bytes(17), b"", "0" * 16, [0] * 16, None])
def test_data_must_be_exactly_as_long_as_the_shape_says(data: object) -> None:
    with pytest.raises(CodecError, match=r"data"):
        decode_body(array_map(data=data))


@pytest.mark.parametrize("shape", [[-1, -4], [2, -2], [2.0, 2], [True, 4], "22", 4, None, {"0": 4}])
def test_shapes_that_are_none_are_refused(shape: object) -> None:
    with pytest.raises(CodecError, match="shape"):
        decode_body(array_map(shape=shape))


def test_a_shape_whose_product_is_astronomical_is_refused_without_allocating() -> None:
    with pytest.raises(CodecError, match=r"expected \d+ bytes"):
        decode_body(array_map(shape=[2**62, 2**62]))
    with pytest.raises(CodecError):
        decode_body(array_map(shape=[0, 2**63 - 1, 2**63 - 1], data=b""))


@pytest.mark.parametrize(
    "changes", [{"type": ...}, {"shape": ...}, {"data": ...}, {"nd": 1}, {"nd": None}, {"more": 1}]
)
def test_missing_and_unknown_keys_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CodecError, match="array map"):
        decode_body(array_map(**changes))


@pytest.mark.parametrize("kind", [b"O", b"V", "O"])
def test_pickled_and_structured_kinds_are_refused(kind: object) -> None:
    with pytest.raises(CodecError, match="kind"):
        decode_body(array_map(kind=kind))


def test_a_boolean_byte_other_than_0_and_1_is_refused() -> None:
    with pytest.raises(CodecError, match="neither 0 nor 1"):
        decode_body(array_map(type="|b1", shape=[2], data=b"\x01\x02"))


def test_text_keys_never_make_an_array() -> None:
    value = {"nd": True, "type": "<f4", "kind": "", "shape": [1], "data": b"1234"}
    assert decode_body(encode_body(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        b"\x01\x01",
        b"\xc1",
        msgpack.packb("x")[:-1],
        b"\x91" * 5000 + b"\x01",
        b"\x81\x01\x02",
        b"\xa1\xff",
    ],
    ids=["empty", "cut", "trailing byte", "reserved", "short text", "too deep", "integer key", "not utf-8"],
)
def test_bytes_that_are_not_one_msgpack_value_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError) as caught:
        decode_body(data)
    assert str(caught.value)


def test_unknown_extension_types_are_refused() -> None:
    with pytest.raises(CodecError, match="extension type 78"):
        decode_body(msgpack.packb(msgpack.ExtType(78, b"x")))


def test_values_without_a_place_on_the_wire_are_named() -> None:
    with pytest.raises(CodecError, match=r"builtins\.set"):
        encode_body({"metadata": {1, 2}})
    with pytest.raises(CodecError):
        encode_body({"text": "\ud800"})
    with pytest.raises(CodecError):
        encode_body(2**64)


def test_json_carries_arrays_as_lists_and_bytes_as_base64() -> None:
    sent = encode_body({"v": np.array([[1, 2]], dtype=np.int8), "s": np.float32(0.5), "b": b"\x00\xff"}, JSON)
    assert json.loads(sent) == {"v": [[1, 2]], "s": 0.5, "b": "AP8="}
    assert decode_body(sent, JSON)["v"] == [[1, 2]]
    with pytest.raises(CodecError):
        encode_body(float("nan"), JSON)
    with pytest.raises(CodecError):
        decode_body(b"{", JSON)
