"""Attacks with bodies: ids, values, nesting, arrays, and sums of unfinished bodies and unread answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from support.hostile import wire
from support.hostile.attack import Attack, Report, repeated
from support.hostile.scale import MIB, scaled

SCORE, ENCODE = "/v1/score/sie/mini-en", "/v1/encode/sie/mini-en"
VECTORS = "/v1/score/toy/colbert"  # a model that scores vectors sent in place of texts
MSGPACK = "Content-Type: application/msgpack"
LONG = "<long>"
LARGE = scaled(12, 60) * MIB
VALUES = scaled(4, 20) * 1_000_000
UNFINISHED = scaled(12, 30)
ITEMS = [{"text": "a"}]


def with_json(path: str, body: dict[str, Any]) -> Callable[[Report], None]:
    """Return an attack with a body in which LONG stands for a text of `LARGE` bytes, as a value or as a key."""
    return repeated(lambda: [wire.post(path, json.dumps(body).replace(LONG, "x" * LARGE).encode())], path)


def with_values(
    field: str, value: bytes, *, path: str = SCORE, wrap: bytes = b"[%s]"
) -> Callable[[Report], None]:
    """Return an attack with a field that holds `VALUES` times `value`."""

    def make() -> list[bytes]:
        many = wrap % b",".join([value] * VALUES)
        body = b'{"query":{"text":"a"},"items":[{"text":"a"}],"%s":%s}' % (field.encode(), many)
        return [wire.post(path, body)]

    return repeated(make, path)


def keys() -> bytes:
    return b"{%s}" % b",".join(b'"k%d":0' % i for i in range(VALUES // 4))


def promised(start: bytes) -> bytes:
    """Return a MessagePack score request whose `items` begin with the header of a huge value."""
    return wire.post(SCORE, b"\x82\xa5query\x81\xa4text\xa1a\xa5items" + start, MSGPACK)


PROMISES = {
    "arrays": b"\xdd\xff\xff\xff\xff",
    "maps": b"\xdf\xff\xff\xff\xff",
    "binaries": b"\xc6\xff\xff\xff\xff",
    "strings": b"\xdb\xff\xff\xff\xff",
    "extensions": b"\xc9\xff\xff\xff\xff\x4e",
}
SHAPES: list[Any] = [
    [0, 2**63], [2**63, 0], [0, 2**64 - 1], [2**32, 2**32], [2**63 - 1, 2], [-1, 4], [-(2**63), 0], [2**62, 0, 2**62],
    [1] * 8, [1] * 9, [0] * 1000, [0.0, 2], [1e308], [None], [True, 4], ["4"], [[4]], {}, "4", None, 4,
    [2**31] * 8, [0, 2**63, 0], [2**40, 0], [2**16] * 4, [],
]  # fmt: skip
TYPES = [
    "<f4",
    ">f8",
    "<f2",
    "|b1",
    "|V0",
    "|O",
    "<U0",
    "|S9",
    "<M8[ns]",
    "",
    "f4,f4",
    "<f16",
    "x" * 10_000,
    4,
    None,
]


def array_bodies() -> list[bytes]:
    """Return MessagePack score requests whose vectors have odd shapes and types."""
    maps = [{b"nd": True, b"type": "<f4", b"kind": b"", b"shape": s, b"data": b""} for s in SHAPES]
    maps += [{b"nd": True, b"type": t, b"kind": b"", b"shape": [0, 128], b"data": b""} for t in TYPES]
    maps += [{b"nd": False, b"type": "<f4", b"data": b""}, {b"nd": True}, {b"nd": 2**63, b"shape": [1]}]
    vectors = [*maps, [maps[0], maps[1]], [maps[4]] * 3]
    vectors += [msgpack.ExtType(78, msgpack.packb(m)) for m in maps[:4]]
    bodies = [{"query": {"text": "a"}, "items": [{"multivector": vector}]} for vector in vectors]
    bodies += [{"query": {"multivector": vector}, "items": [{"text": "a"}]} for vector in vectors[:4]]
    return [msgpack.packb(body) for body in bodies]


def arrays() -> list[bytes]:
    return [wire.post(VECTORS, body, MSGPACK) for body in array_bodies()]


def unfinished(report: Report) -> None:
    """Send all but the last byte of several large bodies, and wait."""
    report.hold(UNFINISHED * LARGE)
    start, piece = wire.head("POST", SCORE, LARGE), b"a" * MIB
    connections = [wire.connect(report.port, timeout=2) for _ in range(UNFINISHED)]
    for connection in connections:
        with contextlib.suppress(OSError, wire.Stalled):  # answered or not read to the end, as it should be
            wire.send(connection, pieces(start, piece, LARGE // MIB - 1), timeout=2)
    report.pause(60)
    report.close(connections)


def pieces(start: bytes, piece: bytes, count: int) -> Iterator[bytes]:
    yield start
    for _ in range(count):
        yield piece


def unread(report: Report) -> None:
    """Request large answers and read nothing of them."""
    items = [{"text": "rain " * 40_000}] * 20
    body = json.dumps(
        {"query": {"text": "a"}, "items": items, "options": {"return_documents": True}}
    ).encode()
    callers = scaled(6, 20)
    report.hold(callers * 2 * len(body))
    connections = [wire.connect(report.port, receive_buffer=4096) for _ in range(callers)]
    for connection in connections:
        with contextlib.suppress(OSError, wire.Stalled):
            wire.send(connection, wire.post(SCORE, body), timeout=5)
    report.pause(60)
    for connection in connections:
        connection.close()


LONG_PATH = "y" * 60_000
NEST = scaled(1, 16) * MIB
TEXTS = {"query": {"text": "a"}, "items": ITEMS}

ATTACKS = [
    Attack(
        "long model id, embeddings", with_json("/v1/embeddings", {"model": LONG, "input": "a"}), quick=True
    ),
    Attack(
        "long model id, rerank", with_json("/v1/rerank", {"model": LONG, "query": "a", "documents": ["b"]})
    ),
    Attack("long adapter", with_json(SCORE, {**TEXTS, "options": {"lora": LONG}}), quick=True),
    Attack("long profile", with_json(SCORE, {**TEXTS, "options": {"profile": LONG}})),
    Attack("long option name", with_json(SCORE, {**TEXTS, "options": {LONG: 1}})),
    Attack("long enumeration value", with_json(SCORE, {**TEXTS, "options": {"normalize": LONG}}), quick=True),
    Attack("long unknown field", with_json("/v2/rerank", {"model": "m", "query": "a", LONG: 1})),
    Attack("long item id", with_json(SCORE, {"query": {"text": "a"}, "items": [{"id": LONG, "text": ""}]})),
    Attack(
        "long ids in paths",
        repeated(
            lambda: [
                *(wire.post(f"/v1/{route}/{LONG_PATH}", b"{}") for route in ("score", "encode", "inspect")),
                wire.head("GET", f"/v1/models/{LONG_PATH}"),
                wire.head("GET", f"/{LONG_PATH}"),
            ]
        ),
        quick=True,
    ),
    Attack("many values, unknown field", with_values("other", b"1")),
    Attack("many empty lists, unknown field", with_values("other", b"[]")),
    Attack("many values, options", with_values("options", b"1", wrap=b'{"other":[%s]}'), quick=True),
    Attack("many values, metadata", with_values("query", b'"a"', wrap=b'{"text":"a","metadata":{"m":[%s]}}')),
    Attack(
        "many values, vectors",
        with_values("query", b"0.5", path=VECTORS, wrap=b'{"multivector":[[%s]]}'),
        quick=True,
    ),
    Attack("many values, wrong type", with_values("instruction", b"1")),
    Attack("many keys", repeated(lambda: [wire.post(SCORE, b'{"options":%s}' % keys())]), quick=True),
    Attack("many values, dialect", with_values("documents", b"1", path="/v1/rerank")),
    Attack("many values, embeddings", with_values("input", b"1", path="/v1/embeddings")),
    Attack(
        "deep JSON",
        repeated(lambda: [wire.post(SCORE, b'{"query":' + c * NEST) for c in (b"[", b'{"a":')]),
        quick=True,
    ),
    Attack(
        "deep MessagePack",
        repeated(
            lambda: [wire.post(SCORE, b"\x81\xa5query" + c * NEST, MSGPACK) for c in (b"\x91", b"\x81\xa1a")]
        ),
        quick=True,
    ),
    Attack("MessagePack that promises too much", repeated(lambda: [promised(p) for p in PROMISES.values()])),
    Attack(
        "MessagePack that nests promises",
        repeated(lambda: [promised(p * 1000) for p in PROMISES.values()]),
        quick=True,
    ),
    Attack("arrays of odd shapes", repeated(arrays), quick=True),
    Attack("unfinished bodies", unfinished, refusing=True, quick=True),
    Attack("unread answers", unread, refusing=True, quick=True),
]
