"""Valid request bodies, and strategies that spoil them: odd values, missing and repeated parts, flipped bytes."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import msgpack
from hypothesis import strategies as st

JSON, MSGPACK = "application/json", "application/msgpack"
BERT, ENCODER, COLBERT = "toy/bert", "toy/encoder", "toy/colbert"
WIDTH = 24  # of the token vectors
VECTORS = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2, WIDTH], b"data": bytes(8 * WIDTH)}
TEXTS = {
    "query": {"id": "q", "text": "stars"},
    "items": [{"id": "a", "text": "Stars burn."}, {"text": "Rain."}],
}


@dataclass(frozen=True)
class Seed:
    """A valid request; `own` routes also accept MessagePack."""

    path: str
    body: Any
    own: bool = True


OPTIONS = {
    "top_n": 1, "max_seq_length": 16, "return_documents": True, "normalize": "sigmoid", "long_document": "chunk",
    "chunk_overlap": 4, "aggregate": "mean", "priority": "bulk", "deadline_ms": 5000,
    "profile": "default", "return_logits": True,
}  # fmt: skip
ENCODED = {"output_types": ["dense"], "output_dtype": "int8", "is_query": True, "options": {"dimensions": 4}}
OWN = [
    Seed(f"/v1/score/{BERT}", TEXTS),
    Seed(f"/v1/score/{BERT}", {**TEXTS, "instruction": None, "options": OPTIONS}),
    Seed(f"/v1/score/{COLBERT}", {**TEXTS, "options": {"return_documents": True}}),
    Seed(f"/v1/score/{COLBERT}", {"query": {"text": "a"}, "items": [{"multivector": VECTORS}]}),
    Seed(
        f"/v1/score/{COLBERT}",
        {"query": {"multivector": VECTORS}, "items": [{"multivector": [[0.5] * WIDTH]}]},
    ),
    Seed(f"/v1/inspect/{BERT}", {**TEXTS, "options": {"max_seq_length": 16, "long_document": "chunk"}}),
    Seed(f"/v1/encode/{ENCODER}", {"items": [{"id": "a", "text": "b"}], "params": ENCODED}),
    Seed(f"/v1/encode/{COLBERT}", {"items": [{"text": "b"}], "params": {"output_types": ["multivector"]}}),
]
JSON_ONLY = [
    ("/v1/embeddings", {"model": ENCODER, "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}),
    ("/v1/embeddings", {"model": ENCODER, "input": "a", "user": "me"}),
    ("/v2/rerank", {"model": BERT, "query": "a", "documents": ["b", "c"], "top_n": 1}),
    ("/v1/rerank", {"model": BERT, "query": "a", "documents": [{"text": "b"}], "return_documents": True}),
    ("/v1/rerank", {"model": BERT, "query": "a", "documents": ["b"], "top_k": 1, "truncation": True}),
    ("/rerank", {"query": "a", "texts": ["b", "c"], "raw_scores": True, "return_text": True, "truncate": True}),
    ("/v1/ranking", {"model": BERT, "query": {"text": "a"}, "passages": [{"text": "b"}], "truncate": "END"}),
    ("/score", {"model": BERT, "queries": "a", "documents": ["b", "c"]}),
    ("/v1/score", {"model": BERT, "text_1": "a", "text_2": ["c", "d"]}),
    ("/v1/score", {"model": BERT, "queries": ["a", "b"], "documents": ["c", "d"]}),
    ("/v1/reranking", {"model": BERT, "query": "a", "input": ["b"], "top_k": 1, "return_input": "true"}),
    (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {"model": BERT, "input": {"query": "a", "documents": ["b"]}, "parameters": {"top_n": "1"}},
    ),
    (
        "/pinecone/rerank",
        {"model": BERT, "query": "a", "documents": [{"text": "b"}], "parameters": {"truncate": "END"}},
    ),
    ("/embed", {"model": ENCODER, "inputs": ["a"], "truncate": True, "normalize": True}),
    ("/v1/admin/load", {"model": BERT, "pin": True}),
    ("/v1/admin/adapters/unload", {"model": BERT, "adapter": "a"}),
]  # fmt: skip
SEEDS = [*OWN, *(Seed(path, body, own=False) for path, body in JSON_ONLY)]

ODD_NUMBERS = [0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 1e308, -0.0, 0.5, 1e-320, True, False]
ODD_TEXTS = [
    "", " ", "\x00", "\ud800", "\u202e", "\ufdfa" * 40, "a" * 3000, "\u0301" * 500, "../../etc/passwd",
    "a:b", "x" * 250, "[SEP]", "NaN", "{{7*7}}", "%s%n", "\r\nX: y",
]  # fmt: skip
ODD_SHAPES = [[0, 2**63], [2**32, 2**32], [-1], [], [0] * 9, [2**64 - 1], [True], 4, None, [1, 1, 1]]
ODD = st.one_of(
    st.none(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(
        [[], {}, [[]], {"": None}, [None], [0.5] * 300, ["a"] * 300, [[0.5]], [[0.5], [0.5, 1.0]]]
    ),
    st.sampled_from(ODD_SHAPES).map(lambda shape: {**VECTORS, b"shape": shape, b"data": b""}),
    st.sampled_from(["<f8", "|O", "|V0", "<U4", "f4,f4", "", 3]).map(lambda kind: {**VECTORS, b"type": kind}),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 10**400]),
    st.text(max_size=30),
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
    st.just(msgpack.ExtType(78, b"\x80")),
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=6
    ),
).map(deepcopy)  # a drawn value may be spoiled in turn

ODD_PARTS = {  # of array maps, most of whose other values are refused before these are read
    b"shape": st.sampled_from(ODD_SHAPES).map(deepcopy) | st.lists(st.integers(0, 2**64 - 1), max_size=9),
    b"type": st.sampled_from(["<f8", ">f4", "<f2", "<i8", "|b1", "|O", "f4"]),
    b"data": st.sampled_from([b"", bytes(4), bytes(4 * WIDTH), b"\xff" * 8 * WIDTH]),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a body."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        found += places(part, (*path, key))
    return found


def spoil(body: Any, draw: st.DrawFn) -> Any:
    """Return the body with one value replaced, removed, added, renamed, repeated or wrapped."""
    *parents, key = draw(st.sampled_from(places(body)[1:] or [("x",)]))
    holder = body
    for parent in parents:
        holder = holder[parent]
    if not isinstance(holder, (dict, list)) or (isinstance(holder, dict) and key not in holder):
        return draw(ODD)
    match draw(st.sampled_from(["replace", "replace", "remove", "add", "rename", "repeat", "wrap"])):
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(["options", "text", "multivector", "images", "x" * 300]))] = draw(ODD)
        case "rename" if isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder.pop(key)
        case "repeat" if isinstance(holder, list):
            holder.extend([holder[key]] * draw(st.integers(1, 300)))
        case "wrap":
            holder[key] = [holder[key]]
        case _:
            holder[key] = draw(ODD_PARTS.get(key, ODD))
    return body


def encoded(body: Any, media: str) -> bytes:
    """Encode a body, also one that the format cannot carry."""
    if media == JSON:
        text = json.dumps(body, default=repr, skipkeys=True)
        return text.encode("utf-8", "surrogatepass")
    return bytes(msgpack.packb(body, default=repr, unicode_errors="surrogatepass"))


def packable(value: Any) -> Any:
    """Return the value with integers that MessagePack cannot carry as text."""
    if isinstance(value, dict):
        return {key: packable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [packable(part) for part in value]
    too_large = isinstance(value, int) and not -(2**63) <= value < 2**64
    return str(value)[:50] if too_large else value


def readable(value: Any) -> Any:
    """Return the value with keys that JSON can carry."""
    if isinstance(value, dict):
        return {
            key.decode("latin-1") if isinstance(key, bytes) else key: readable(v) for key, v in value.items()
        }
    return [readable(part) for part in value] if isinstance(value, list) else value


def damage(content: bytes, draw: st.DrawFn) -> bytes:
    """Return the bytes with some flipped, inserted, removed or repeated."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    length = draw(st.integers(1, 8))
    match draw(st.sampled_from(["flip", "insert", "remove", "repeat", "truncate", "append"])):
        case "flip":
            return content[:place] + draw(st.binary(min_size=1, max_size=2)) + content[place + 1 :]
        case "insert":
            return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
        case "remove":
            return content[:place] + content[place + length :]
        case "repeat":
            return (
                content[:place]
                + content[place : place + length] * draw(st.integers(2, 200))
                + content[place:]
            )
        case "truncate":
            return content[:place]
        case _:
            return content + draw(st.binary(min_size=1, max_size=8))


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, str], bytes]:
    """Draw path, headers and body of a spoiled request."""
    seed = draw(st.sampled_from(SEEDS))
    body = deepcopy(seed.body)
    for _ in range(draw(st.integers(0, 3))):
        body = spoil(body, draw)
    media = draw(st.sampled_from([JSON, MSGPACK])) if seed.own else JSON
    content = encoded(readable(body) if media == JSON else packable(body), media)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        content = damage(content, draw)
    if draw(st.integers(0, 30)) == 0:
        media = draw(st.sampled_from([JSON, MSGPACK, "text/plain", "application/json; charset=utf-16", ""]))
    accept = draw(st.sampled_from([JSON, JSON, MSGPACK, "*/*", "application/json;q=x", "text/html"]))
    return seed.path, {"content-type": media, "accept": accept}, content
