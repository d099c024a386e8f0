"""Decoding is bounded: limits hold for bodies of any shape, and what the server never reads is never built."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.types import Message

from sie_server.api import codec
from sie_server.api.codec import JSON, MSGPACK
from sie_server.api.edge.budget import Budget
from sie_server.api.reading import LARGE, BodyThreads, memory_of, read
from sie_server.arrays import Encoded
from sie_server.config import NAME_LENGTH, ServerConfig, suggest
from sie_server.errors import MESSAGE_BYTES, InvalidInput, shown
from sie_server.serving.metrics import RequestTiming
from sie_server.wire import AdminLoadRequest, EncodeRequest, Item, ScoreRequest
from sie_server.wire import limits as limited
from sie_server.wire.limits import MAX_CONTAINERS, MAX_DEPTH, MAX_ITEMS, MAX_VALUES, check_json, check_msgpack

ITEMS = [{"text": "a"}]
HEAD = b'{"query":{"text":"q"},"items":[{"text":"a"}],'


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


# ── the scan of JSON ──

LETTERS = ["a", "\\", '"', "[", "]", "{", "}", ",", ":", "é", "\n", "😀"]


def random_value(rng: random.Random, depth: int) -> Any:
    kind, text = rng.random(), "".join(rng.choices(LETTERS, k=rng.randrange(8)))
    if depth == 0 or kind < 0.3:
        return text
    if kind < 0.65:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {f"{text}{i}": random_value(rng, depth - 1) for i in range(rng.randrange(4))}


def counted(value: Any) -> tuple[int, int, int, int]:
    """Return the lists and objects, the empty ones of them, the values and the nesting of a value."""
    if not isinstance(value, list | dict):
        return 0, 0, 1, 0
    parts = [counted(part) for part in (value if isinstance(value, list) else value.values())]
    names = len(value) if isinstance(value, dict) else 0
    containers, empty, values = (sum(part[i] for part in parts) for i in range(3))
    depth = 1 + max((part[3] for part in parts), default=0)
    return containers + 1, empty + (not value), values + names + 1, depth


@pytest.mark.parametrize("size", [2, 6, 16, 2**18])
def test_the_scan_counts_as_a_parser_does(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices may end anywhere: within a text, between a backslash and its character, within a run of backslashes."""
    monkeypatch.setattr(limited, "SLICE", size)
    rng = random.Random(5)
    for _ in range(500):
        value = [random_value(rng, 5)]
        body = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        containers, empty, values, depth = counted(value)
        monkeypatch.setattr(limited, "MAX_DEPTH", depth)
        scan = limited._Scan()
        scan.check(body)
        # a list of n values has n - 1 commas
        assert (scan.containers, scan.values, scan.depth) == (containers, values - 1 + empty, 0)
        monkeypatch.setattr(limited, "MAX_DEPTH", depth - 1)
        with pytest.raises(InvalidInput):
            limited._Scan().check(body)


def repeated(part: bytes, times: int, *, start: bytes = b"[", end: bytes = b"1]") -> bytes:
    return start + part * times + end


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 200, "nested too deeply"),
        (b'{"a":[' * 60, "nested too deeply"),
        (repeated(b"{},", MAX_CONTAINERS + 1), "lists and objects"),
        (repeated(b"[],", MAX_CONTAINERS + 1), "lists and objects"),
        (repeated(b'{"a":1},', MAX_CONTAINERS + 1), "lists and objects"),
        (repeated(b"1,", MAX_VALUES + 1), "values"),
        (repeated(b'"",', MAX_VALUES + 1), "values"),
        (repeated(b'"a":1,', MAX_VALUES // 2 + 1, start=b"{", end=b'"b":1}'), "values"),
        (repeated(rb'"\\",', MAX_VALUES + 1), "values"),
        (repeated(rb'"\"",', MAX_VALUES + 1), "values"),
        (b'{"a":"' + b"\\" * 2**18 + b'",' + repeated(b"1,", MAX_VALUES + 1, start=b'"b":[', end=b"1]}"), "values"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_json_over_a_limit_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b",:[{" * 500_000 + b'"}',
        b'{"a":"' + rb"\",[" * 500_000 + b'"}',
        b'{"a":"' + b"\\\\" * 500_000 + b'","b":[[],[]]}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]",
        b"[" + b"1," * (MAX_VALUES - 2) + b"1]",
        b"",
        b"\\",
        b'"',
    ],
    ids=lambda value: repr(value)[:24],
)
def test_json_within_the_limits_is_accepted(body: bytes) -> None:
    check_json(body)
    limited._Scan().check(body)


# ── MessagePack ──


def test_msgpack_is_counted_without_building_it() -> None:
    rng = random.Random(6)
    for _ in range(300):
        value = random_value(rng, 5)
        assert check_msgpack(packed(value)) == counted(value)[2]
    scalars = [None, True, 5, -5, 200, -200, 70000, -70000, 2**40, -(2**40), 2**63, 1.5, "a" * 40, "a" * 300]
    others = [
        b"a",
        b"a" * 300,
        b"a" * 70000,
        "a" * 70000,
        [0] * 20,
        [0] * 70000,
        msgspec.msgpack.Ext(5, b"abc"),
    ]
    extensions = [msgspec.msgpack.Ext(5, b"a" * n) for n in (1, 2, 4, 8, 16, 17, 300, 70000)]
    for value in (*scalars, *others, *extensions):
        assert check_msgpack(packed(value)) == (len(value) + 1 if isinstance(value, list) else 1)
        assert check_msgpack(packed([value, "end"])) >= 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xdd\xff\xff\xff\xff", "values"),
        (b"\xdf\xff\xff\xff\xff", "values"),
        (b"\xdc\xff\xff", "larger than the data"),
        (b"\xde\xff\xff\x01", "larger than the data"),
        (b"\xdb\xff\xff\xff\xffabc", "larger than the data"),
        (b"\xc6\xff\xff\xff\xffabc", "larger than the data"),
        (b"\xc9\xff\xff\xff\xff\x05abc", "larger than the data"),
        (b"\xcb\x00", "larger than the data"),
        (b"\xdd\x00", "larger than the data"),
        (b"", "larger than the data"),
        (b"\x91" * (MAX_DEPTH + 1) + b"\x01", "nested too deeply"),
        (b"\x81\xa1a" * 200, "nested too deeply"),
        (b"\xdd" + struct.pack(">I", MAX_VALUES) + b"\x01" * MAX_VALUES, "values"),
        (b"\xdd" + struct.pack(">I", MAX_CONTAINERS + 1) + b"\x90" * (MAX_CONTAINERS + 1), "lists and objects"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_msgpack_over_a_limit_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_msgpack(body)


# ── what is built ──

ENCODERS: list[tuple[str, Callable[[Any], bytes]]] = [(JSON, msgspec.json.encode), (MSGPACK, packed)]


@pytest.mark.parametrize(("media", "encoder"), ENCODERS)
def test_free_form_values_are_not_built(media: str, encoder: Callable[[Any], bytes]) -> None:
    free = {"a": [{"b": i} for i in range(1000)]}
    item = {"id": "x", "text": "a", "metadata": free, "images": None, "unknown": free}
    body = encoder(
        {"query": item, "items": [item, {**item, "metadata": None}, {"images": free}], "more": free}
    )
    decoded = codec.decode(body, media, ScoreRequest)
    assert decoded.query == Item("x", "a")
    assert decoded.items == [Item("x", "a"), Item("x", "a"), Item(images=True)]
    for name in ("audio", "video", "document"):
        assert (
            getattr(codec.decode(encoder({"items": [{name: free}]}), media, EncodeRequest).items[0], name)
            is True
        )


@pytest.mark.parametrize(("media", "encoder"), ENCODERS)
@pytest.mark.parametrize("value", ["x", [1], 5, False])
def test_metadata_is_a_map(media: str, encoder: Callable[[Any], bytes], value: Any) -> None:
    for where, body in (
        ("$.query", {"query": {"metadata": value}, "items": ITEMS}),
        ("$.items[1]", {"query": {}, "items": [*ITEMS, {"metadata": value}]}),
    ):
        with pytest.raises(InvalidInput) as caught:
            codec.decode(encoder(body), media, ScoreRequest)
        assert f"`{where}.metadata`" in caught.value.message


@pytest.mark.parametrize(("media", "encoder"), ENCODERS)
def test_a_decoded_request_does_not_keep_its_body(media: str, encoder: Callable[[Any], bytes]) -> None:
    free = {"a": "b" * 5000}
    small = {
        "query": {"text": "q", "metadata": free},
        "items": [{"multivector": [[1.0, 2.0]], "video": free}],
    }
    body = encoder({**small, "options": {"top_n": 1}})
    before = sys.getrefcount(body)
    decoded = codec.decode(body, media, ScoreRequest)
    assert sys.getrefcount(body) == before
    assert decoded.options == {"top_n": 1}
    array = decoded.items[0].multivector
    assert isinstance(array, Encoded) and array.decode("$")[0] == [[1.0, 2.0]]


@pytest.mark.parametrize(("media", "encoder"), ENCODERS)
def test_options_are_small(media: str, encoder: Callable[[Any], bytes]) -> None:
    for body, kind, path in (
        ({"query": {}, "items": ITEMS, "options": {"instruction": "x" * 2**16}}, ScoreRequest, "$.options"),
        ({"items": ITEMS, "params": {"options": {"x": [0] * 2**16}}}, EncodeRequest, "$.params.options"),
    ):
        with pytest.raises(InvalidInput) as caught:
            codec.decode(encoder(body), media, kind)
        assert "64 KiB" in caught.value.message and f"`{path}`" in caught.value.message


@pytest.mark.parametrize(("media", "encoder"), ENCODERS)
def test_the_number_of_items_is_limited(media: str, encoder: Callable[[Any], bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"length <= 100000 - at `\$\.items`|lists and objects"):
        codec.decode(encoder({"query": {}, "items": [{}] * (MAX_ITEMS + 1)}), media, ScoreRequest)
    kept = codec.decode(encoder({"query": {}, "items": [{}] * (MAX_ITEMS - 10)}), media, ScoreRequest)
    assert len(kept.items) == MAX_ITEMS - 10


def test_a_promise_of_many_items_is_refused_before_memory_is_reserved() -> None:
    for header in (b"\xdd\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff\x80", b"\xdd\x00\x01\x86\xa1\x80"):
        with pytest.raises(InvalidInput):
            codec.decode(b"\x82\xa5query\x80\xa5items" + header, MSGPACK, ScoreRequest)
        with pytest.raises(InvalidInput):
            codec.decode(b"\x82\xa5query\x80\xa7options" + header, MSGPACK, ScoreRequest)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (HEAD + b'"options":{"x":1e400}}', r"\$\.options"),
        (HEAD + b'"options":{"x":' + b"9" * 5000 + b"}}", r"\$\.options"),
        (HEAD + rb'"options":{"x":"\ud800"}}', "not valid JSON"),
        (HEAD + b'"options":{"x":"\xff"}}', "UTF-8"),
        (HEAD + b'"options":[1]}', r"\$\.options"),
        (HEAD + b'"options":"x"}', r"\$\.options"),
    ],
)
def test_invalid_options_are_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        codec.decode(body, JSON, ScoreRequest)


def test_duplicate_keys_cost_no_memory() -> None:
    body = HEAD + b'"options":{"top_n":1},' * 1000 + b'"options":{"top_n":2}}'
    assert codec.decode(body, JSON, ScoreRequest).options == {"top_n": 2}


def test_the_memory_of_texts_is_reported() -> None:
    """One wide character makes a text four times as large."""
    plain, wide = (
        memory_of(codec.decode(packed({"items": [{"text": text}]}), MSGPACK, EncodeRequest))
        for text in ("a" * 100_000, "a" * 100_000 + "😀")
    )
    assert 100_000 < plain < 101_000 and 400_000 < wide < 401_000
    assert memory_of({"a": ["b"] * 1000}) > 1000 * sys.getsizeof("b")


@pytest.mark.parametrize(("size", "thread"), [(100, "MainThread"), (LARGE + 1, "sie-decode")])
async def test_large_bodies_are_decoded_on_a_thread(size: int, thread: str) -> None:
    text = "😀" + "a" * size
    body = json.dumps({"text": text}, ensure_ascii=False).encode()

    async def receive() -> Message:
        if sent:
            await asyncio.Event().wait()  # the client stays connected
        sent.append(body)
        return {"type": "http.request", "body": body, "more_body": False}

    sent: list[bytes] = []
    service = SimpleNamespace(config=ServerConfig())
    app = SimpleNamespace(state=SimpleNamespace(service=service, threads=BodyThreads()))
    budget = Budget(2**30, 2**26)
    exchange = SimpleNamespace(share=budget.share(), cycle=SimpleNamespace(disconnected=False))
    scope = {
        "type": "http",
        "headers": [],
        "app": app,
        "state": {"exchange": exchange, "timing": RequestTiming()},
    }
    request = Request(scope, receive)
    decoded, name = await read(request, Item, convert=lambda item: (item, threading.current_thread().name))
    assert name.startswith(thread)
    assert decoded == Item(text=text)
    # the body itself is counted by the connection
    assert budget.used == pytest.approx(3 * size if size > LARGE else 0, rel=0.01)


# ── messages ──

ODD = ["\x00", "\x1b", "😀", "\U000e0001", '"', "\\", "é", "`", " - at `$."]


@pytest.mark.parametrize("unit", ODD)
@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "%s": 1},
        {"model": "m", "source": 1, "%s": {"%s": "%s"}},
        {"model": "%s"},
        {"%s": "%s"},
    ],
)
def test_messages_about_decoding_are_short(unit: str, body: dict[str, Any]) -> None:
    text = json.dumps(body).replace("%s", json.dumps(unit * 300_000)[1:-1])
    with pytest.raises(InvalidInput) as caught:
        codec.decode(text.encode(), JSON, AdminLoadRequest)
    assert len(json.dumps(caught.value.message)) < MESSAGE_BYTES
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("unit", [*ODD, "\ud800"])
def test_every_message_is_short_and_can_be_sent(unit: str) -> None:
    message = InvalidInput(unit * 100_000).message
    assert 0 < len(msgspec.json.encode(message)) <= MESSAGE_BYTES
    assert 0 < len(shown(unit * 100_000)) < 90


def test_a_name_that_is_too_long_is_not_compared() -> None:
    """The comparison takes quadratic time."""
    assert suggest("x" * NAME_LENGTH, ["x" * NAME_LENGTH])
    assert suggest("x" * (NAME_LENGTH + 1), ["x" * NAME_LENGTH]) == ""


def test_short_values_are_shown_as_they_are() -> None:
    for value in ("org/name", "it's", "", "\x00", 5, b"x", "x" * 80):
        assert shown(value) == repr(value)
    assert shown("x" * 81) == f"'{'x' * 80}…'"
    assert (
        InvalidInput("expected a text - at `$.items[0].text`").message
        == "expected a text - at `$.items[0].text`"
    )
