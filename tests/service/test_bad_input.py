"""Invalid requests are refused with the path of the error, and do not affect the answers of other callers.

While this module runs, a bystander repeats one request, and each answer must equal the first.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import torch
import transformers

from support.servers.processes import JSON, MSGPACK, Server

BERT = "toy/bert"
ITEMS = [{"text": "rain falls"}]
UNKNOWN = [{"text": "company of machines"}]  # has words that the probe of a load does not read
GOOD: dict[str, Any] = {"query": {"text": "rain"}, "items": ITEMS}
MAX_BODY = 8 * 2**20  # as in conftest
DEEP = 5_000


class Bystander(threading.Thread):
    """Repeats one request and records every answer that differs from the first."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        texts = ["machine learning learns patterns", "rain falls", "", "stars burn hydrogen"]
        self.body = {"query": {"text": "rain tomorrow"}, "items": [{"text": text} for text in texts]}
        self.url = f"{server.base_url}/v1/score/{BERT}"
        self.expected = server.post(f"/v1/score/{BERT}", self.body).json()["scores"]
        self.begun = self.answered = 0
        self.failures: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=60, headers={"accept": JSON}) as client:
            while not self.enough.is_set():
                self.begun += 1
                try:
                    answer = client.post(self.url, json=self.body)
                    if answer.status_code != 200 or not self._is_right(answer.json()["scores"]):
                        self.failures.append(f"{answer.status_code} {answer.text[:500]}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                self.answered += 1
                self.enough.wait(0.005)

    def _is_right(self, scores: list[dict[str, Any]]) -> bool:
        # the other texts of a batch may change the last bits of a score
        return [(e["item_id"], e["rank"]) for e in scores] == [
            (e["item_id"], e["rank"]) for e in self.expected
        ] and [e["score"] for e in scores] == pytest.approx([e["score"] for e in self.expected], abs=1e-6)


@pytest.fixture(scope="module")
def bystander(server: Server) -> Iterator[Bystander]:
    thread = Bystander(server)
    thread.start()
    yield thread
    thread.enough.set()
    thread.join(60)
    assert not thread.is_alive()
    assert thread.failures == []
    assert thread.answered > 50


@pytest.fixture(autouse=True)
def nobody_else_suffers(bystander: Bystander) -> Iterator[None]:
    """After each test, wait for a correct answer to a request that began after the test."""
    yield
    asked, end = bystander.begun + 1, time.monotonic() + 60
    while bystander.answered < asked and time.monotonic() < end:
        time.sleep(0.005)
    assert bystander.answered >= asked, "the bystander no longer gets answers"
    assert bystander.failures == []


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """Return the error map, after checking that it is present in all places that clients read."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == JSON
    body = answer.json()
    assert list(body) == ["detail", "error", "code"]
    assert body["detail"] == body["error"]
    assert body["code"] == body["error"]["code"] == answer.headers["x-sie-error-code"] == code
    for word in words:
        assert word in body["error"]["message"]
    assert "Traceback" not in answer.text and ".py" not in answer.text
    error: dict[str, Any] = body["error"]
    return error


def with_options(**options: Any) -> dict[str, Any]:
    return {**GOOD, "options": options}


# ── well-formed, but of the wrong shape ──

WRONG_SHAPES: list[tuple[Any, str]] = [
    ({**GOOD, "items": []}, "$.items"),
    ({**GOOD, "items": {}}, "$.items"),
    ({**GOOD, "items": None}, "$.items"),
    ({**GOOD, "items": "rain falls"}, "$.items"),
    ({"query": GOOD["query"]}, "`items`"),
    ({"items": ITEMS}, "`query`"),
    ({}, "`query`"),
    ({**GOOD, "query": None}, "$.query"),
    ({**GOOD, "query": "rain"}, "$.query"),
    ({**GOOD, "query": ["rain"]}, "$.query"),
    ({**GOOD, "query": {}}, "$.query.text"),
    ({**GOOD, "query": {"text": None}}, "$.query.text"),
    ({**GOOD, "query": {"text": 5}}, "$.query.text"),
    ({**GOOD, "query": {"text": "rain", "id": 5}}, "$.query.id"),
    ({**GOOD, "query": {"text": "rain", "metadata": "x"}}, "$.query.metadata"),
    ({**GOOD, "items": ["rain falls"]}, "$.items[0]"),
    ({**GOOD, "items": [*ITEMS * 3, "rain falls"]}, "$.items[3]"),
    ({**GOOD, "items": [*ITEMS * 3, {"text": 5}]}, "$.items[3].text"),
    ({**GOOD, "items": [*ITEMS * 3, {"text": ["a"]}]}, "$.items[3].text"),
    ({**GOOD, "items": [*ITEMS * 3, {"id": "x"}]}, "$.items[3].text"),
    ({**GOOD, "items": [*ITEMS * 3, {}]}, "$.items[3].text"),
    ({**GOOD, "items": [*ITEMS * 3, None]}, "$.items[3]"),
    ({**GOOD, "items": [*ITEMS * 3, {"text": "a", "id": True}]}, "$.items[3].id"),
    ({**GOOD, "instruction": 5}, "$.instruction"),
    ({**GOOD, "options": []}, "$.options"),
    ({**GOOD, "options": "top_n"}, "$.options"),
    ([GOOD], "`object`"),
    (None, "`object`"),
    ("query", "`object`"),
    (7, "`object`"),
]


@pytest.mark.parametrize("media", [JSON, MSGPACK])
@pytest.mark.parametrize(("body", "where"), WRONG_SHAPES)
def test_a_wrong_shape_is_named_with_its_path(server: Server, body: Any, where: str, media: str) -> None:
    answer = server.post(f"/v1/score/{BERT}", body, content_type=media)
    refused(answer, 400, "INVALID_INPUT", where)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"top_n": 0}, "$.options.top_n"),
        ({"top_n": -1}, "$.options.top_n"),
        ({"top_n": "3"}, "$.options.top_n"),
        ({"top_n": True}, "$.options.top_n"),
        ({"top_n": 1.5}, "$.options.top_n"),
        ({"max_seq_length": 0}, "$.options.max_seq_length"),
        ({"max_seq_length": 1}, "$.options.max_seq_length"),
        ({"max_seq_length": 129}, "$.options.max_seq_length"),
        ({"max_seq_length": 10**12}, "$.options.max_seq_length"),
        ({"max_seq_length": "64"}, "$.options.max_seq_length"),
        ({"max_seq_length": [64]}, "$.options.max_seq_length"),
        ({"profile": 5}, "$.options.profile"),
        ({"profile": "fast"}, "$.options.profile"),
        ({"is_query": 1}, "$.options.is_query"),
        ({"instruction": {}}, "$.options.instruction"),
        ({"instruction": "Find what helps"}, "$.options.instruction"),
    ],
)
def test_a_wrong_option_is_named_with_its_path(server: Server, options: Any, where: str) -> None:
    for media in (JSON, MSGPACK):
        answer = server.post(f"/v1/score/{BERT}", with_options(**options), content_type=media)
        refused(answer, 400, "INVALID_INPUT", where)
    encode = {"items": ITEMS, "params": {"options": options}}
    refused(server.post("/v1/encode/toy/encoder", encode), 400, "INVALID_INPUT", where.split(".")[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_in_options(server: Server, value: float) -> None:
    for name in ("top_n", "max_seq_length"):
        answer = server.post(f"/v1/score/{BERT}", with_options(**{name: value}), content_type=MSGPACK)
        refused(answer, 400, "INVALID_INPUT", f"$.options.{name}")
    odd = server.post(f"/v1/score/{BERT}", with_options(temperature=value), content_type=MSGPACK)
    assert odd.status_code == 200 and "'temperature'" in odd.json()["warnings"][0]


def test_an_instruction_to_a_model_that_takes_none(server: Server) -> None:
    answer = server.post(f"/v1/score/{BERT}", {**GOOD, "instruction": "Find what helps"})
    refused(answer, 400, "INVALID_INPUT", "$.instruction", "takes no instruction")
    body = {"items": ITEMS, "params": {"instruction": "Find what helps"}}
    refused(server.post("/v1/encode/toy/encoder", body), 400, "INVALID_INPUT", "$.params.instruction")


@pytest.mark.parametrize("medium", ["images", "audio", "video", "document", "multivector"])
def test_other_media_than_text(server: Server, medium: str) -> None:
    item = {"text": "rain", medium: [[0.5, 0.5]]}
    for where, body in (
        ("$.query", {"query": item, "items": ITEMS}),
        ("$.items[1]", {"query": GOOD["query"], "items": [*ITEMS, item]}),
    ):
        for media in (JSON, MSGPACK):
            answer = server.post(f"/v1/score/{BERT}", body, content_type=media)
            # some models accept vectors, but not together with a text
            words = "not both" if medium == "multivector" else f"not {medium}"
            refused(answer, 400, "INVALID_INPUT", f"{where}.{medium}", words)
    refused(server.post("/v1/encode/toy/encoder", {"items": [item]}), 400, "INVALID_INPUT", medium)


def test_an_array_sent_as_a_multivector(server: Server) -> None:
    array = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1, 2], b"data": bytes(8)}
    body = {"query": {"text": "q"}, "items": [{"text": "a", "multivector": array}]}
    answer = server.post(f"/v1/score/{BERT}", body, content_type=MSGPACK)
    refused(answer, 400, "INVALID_INPUT", "$.items[0].multivector")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"output_types": ["sparse"]}, ("'sparse'", "$.params.output_types", "dense")),
        ({"output_types": ["dense", "multivector"]}, ("'multivector'", "$.params.output_types")),
        ({"output_types": ["dense", "colbert"]}, ("'colbert'", "$.params.output_types[1]")),
        ({"output_types": "dense"}, ("$.params.output_types",)),
        ({"output_dtype": "float128"}, ("'float128'", "$.params.output_dtype")),
        ({"output_dtype": "uint16"}, ("'uint16'", "$.params.output_dtype")),
        ({"is_query": "yes"}, ("$.params.is_query",)),
        ([], ("$.params",)),
    ],
)
def test_outputs_that_are_not_supported(server: Server, params: Any, words: tuple[str, ...]) -> None:
    answer = server.post("/v1/encode/toy/encoder", {"items": ITEMS, "params": params})
    refused(answer, 400, "INVALID_INPUT", *words)


def test_routes_that_a_model_does_not_support(server: Server) -> None:
    answer = server.post("/v1/score/toy/encoder", GOOD)
    refused(answer, 400, "INVALID_INPUT", "'toy/encoder'", "'score'", "dense")
    answer = server.post(f"/v1/encode/{BERT}", {"items": ITEMS})
    refused(answer, 400, "INVALID_INPUT", f"'{BERT}'", "'dense'", "score")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("toy/bort", "did you mean 'toy/bert'"),
        ("TOY/BERT", "did you mean 'toy/bert'"),
        ("%00", "'\\x00'"),
        ("toy/bert%00", "'toy/bert\\x00'"),
        ("..", "'..'"),
        ("../../etc/passwd", "'../../etc/passwd'"),
        ("toy/../toy/bert", "'toy/../toy/bert'"),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "'../../etc/passwd'"),
        ("/etc/passwd", "'etc/passwd'"),
        ("%ff%fe", "not known"),
        ("toy/bert%20", "'toy/bert '"),
        ("x" * 8000, "not known"),
    ],
)
def test_an_unknown_model(server: Server, path: str, shown: str) -> None:
    for method, url, body in (
        ("POST", f"/v1/score/{path}", GOOD),
        ("POST", f"/v1/encode/{path}", {"items": ITEMS}),
        ("GET", f"/v1/models/{path}", None),
    ):
        answer = send_unchanged(server, method, url, None if body is None else json.dumps(body).encode())
        refused(answer, 404, "MODEL_NOT_FOUND", shown)


def send_unchanged(server: Server, method: str, url: str, body: bytes | None) -> httpx.Response:
    """Send `url` unchanged; httpx would resolve its dots."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, url, body)
        answer = connection.getresponse()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    finally:
        connection.close()


# ── bytes that are not a message ──


def json_text(text: bytes) -> bytes:
    return b'{"query": {"text": "q"}, "items": [{"text": %s}]}' % text


def nested(*, key: str, media: str) -> bytes:
    if media == JSON:
        inner = b"[" * DEEP + b"]" * DEEP
        return b'{"query": {"text": "q", "%s": {"a": %s}}, "items": [{"text": "a"}]}' % (key.encode(), inner)
    inner = b"\x81\xa1a" + b"\x91" * DEEP + b"\x90"
    return b"\x82\xa5query\x82\xa4text\xa1q" + msgpack.packb(key) + inner + b"\xa5items\x91\x81\xa4text\xa1a"


WHOLE_JSON, WHOLE_MSGPACK = json.dumps(GOOD).encode(), msgpack.packb(GOOD)
SURROGATE = "\ud800".encode("utf-8", "surrogatepass")
BAD_BYTES: dict[str, tuple[str, bytes, str]] = {
    "cut JSON": (JSON, WHOLE_JSON[:-5], "not valid JSON"),
    "one brace": (JSON, b"{", "not valid JSON"),
    "two commas": (JSON, b'{"query": {"text": "q"},, "items": []}', "not valid JSON"),
    "single quotes": (JSON, b"{'query': {'text': 'q'}}", "not valid JSON"),
    "JSON and more": (JSON, WHOLE_JSON + b"x", "trailing"),
    "JSON twice": (JSON, WHOLE_JSON * 2, "trailing"),
    "UTF-16": (JSON, json.dumps(GOOD).encode("utf-16"), "not valid JSON: it is UTF-16"),
    "NaN": (JSON, b'{"query": {"text": "q"}, "items": [{"text": "a"}], "options": {"x": NaN}}', "not valid JSON"),
    "Infinity": (JSON, json_text(b"Infinity"), "not valid JSON"),
    "-Infinity": (JSON, json_text(b"-Infinity"), "not valid JSON"),
    "a number beyond float64": (JSON, json.dumps(with_options(x=0)).replace("0}", "1e999}").encode(), "$.options"),
    "a number of 5,000 digits": (JSON, json.dumps(with_options(x=5)).replace("5", "5" * 5000).encode(), "$.options"),
    "a raw lone surrogate in msgpack": (MSGPACK, WHOLE_MSGPACK.replace(b"\xa4rain", b"\xa4a" + SURROGATE), "UTF-8"),
    "invalid UTF-8": (JSON, json_text(b'"a\xff"'), "UTF-8"),
    "invalid UTF-8 in msgpack": (MSGPACK, WHOLE_MSGPACK.replace(b"\xa4rain", b"\xa4r\xffin"), "UTF-8"),
    "an overlong encoding": (JSON, json_text(b'"\xc0\xaf"'), "UTF-8"),
    "a raw control character": (JSON, json_text(b'"a\x00b"'), "not valid JSON"),
    "cut msgpack": (MSGPACK, WHOLE_MSGPACK[:-5], "not valid msgpack"),
    "msgpack and more": (MSGPACK, WHOLE_MSGPACK + b"\x00", "trailing"),
    "a byte msgpack never uses": (MSGPACK, b"\xc1", "not valid msgpack"),
    "a map of four billion keys": (MSGPACK, b"\xdf\xff\xff\xff\xff", "not valid msgpack"),
    "a string of four gigabytes": (MSGPACK, b"\x81\xa5query\xdb\xff\xff\xff\xff", "msgpack"),
    "keys that are bytes": (MSGPACK, msgpack.packb({b"query": {"text": "q"}}), "`key`"),
    "keys that are numbers": (MSGPACK, msgpack.packb({1: 2}), "`key`"),
    "text that is bytes": (MSGPACK, msgpack.packb({**GOOD, "query": {"text": b"q"}}), "$.query.text"),
    "deep under a known key": (JSON, nested(key="metadata", media=JSON), "nested too deeply"),
    "deep under an unknown key": (JSON, nested(key="unknown", media=JSON), "nested too deeply"),
    "deep msgpack under a known key": (MSGPACK, nested(key="metadata", media=MSGPACK), "nested too deeply"),
    "deep msgpack under an unknown key": (MSGPACK, nested(key="unknown", media=MSGPACK), "nested too deeply"),
    "an open end": (JSON, b'{"unknown": ' + b"[" * 100_000, "nested too deeply"),
    "msgpack called JSON": (JSON, WHOLE_MSGPACK, "Content-Type: application/msgpack"),
    "JSON called msgpack": (MSGPACK, WHOLE_JSON, "`object`"),
    "compressed": (JSON, b"\x1f\x8b\x08\x00" + bytes(20), "not valid JSON: it is gzip"),
    "nothing": (JSON, b"", "empty"),
    "nothing in msgpack": (MSGPACK, b"", "empty"),
    "blanks": (JSON, b"  \n", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BYTES)
def test_bytes_that_are_not_a_message(server: Server, name: str) -> None:
    media, body, word = BAD_BYTES[name]
    answer = server.post(f"/v1/score/{BERT}", body, content_type=media, accept=MSGPACK)
    refused(answer, 400, "INVALID_INPUT", word)


@pytest.mark.parametrize(
    "name", ["cut JSON", "cut msgpack", "NaN", "an open end", "nothing", "invalid UTF-8"]
)
def test_bytes_that_are_not_a_message_to_encode(server: Server, name: str) -> None:
    media, body, word = BAD_BYTES[name]
    answer = server.post("/v1/encode/toy/encoder", body, content_type=media, accept=MSGPACK)
    refused(answer, 400, "INVALID_INPUT", word)


def test_plain_text_with_json_in_it_is_json(server: Server) -> None:
    answer = server.post(f"/v1/score/{BERT}", WHOLE_JSON, content_type="text/plain")
    assert answer.status_code == 200


def test_a_connection_still_works_after_an_error(server: Server) -> None:
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        for _ in range(3):
            assert client.post(f"/v1/score/{BERT}", content=b"{").status_code == 400
            assert client.post(f"/v1/score/{BERT}", json=GOOD).status_code == 200


# ── too much for its size ──

MANY = 2_000_000
HEAD = b'{"query": {"text": "q"}, "items": [{"text": "a"}], '
PACKED = b"\x83\xa5query\x81\xa4text\xa1q\xa5items\x91\x81\xa4text\xa1a"  # and one more field
LIST = b"\xdd" + MANY.to_bytes(4, "big")
RERANK = b'{"model": "toy/bert", "query": "q", "documents": ["a"], '
LONG_ID = b'"' + b"x" * 4_000_000 + b'"'
SCORE, EMBED = f"/v1/score/{BERT}", "/v1/embeddings"
TOO_MUCH: dict[str, tuple[str, str, bytes, str]] = {
    "brackets": (SCORE, JSON, b"[" * MANY, "nested"),
    "objects in objects": (SCORE, JSON, b'{"a":' * (MANY // 5), "nested"),
    "an unknown field of objects": (SCORE, JSON, HEAD + b'"u": [' + b"{}," * MANY + b"1]}", "lists and objects"),
    "metadata of objects": (
        SCORE, JSON, HEAD[:-4] + b', "metadata": {"u": [' + b"{}," * MANY + b"1]}}]}", "lists and objects",
    ),
    "options of numbers": (SCORE, JSON, HEAD + b'"options": {"u": [' + b"1," * MANY + b"1]}}", "1,000,000 values"),
    "a million options": (
        SCORE, JSON, HEAD + b'"options": {' + b'"a":1,' * 600_000 + b'"b": 1}}', "1,000,000 values",
    ),
    "items": (SCORE, JSON, b'{"query": {"text": "q"}, "items": [' + b"{}," * MANY + b"{}]}", "lists and objects"),
    "a long option": (SCORE, JSON, HEAD + b'"options": {"u": ' + LONG_ID + b"}}", "64 KiB"),
    "a long adapter": (SCORE, JSON, HEAD + b'"options": {"lora": ' + LONG_ID + b"}}", "64 KiB"),
    "an adapter of 300 characters": (
        SCORE, JSON, HEAD + b'"options": {"lora": "' + b"x" * 300 + b'"}}', "$.options.lora",
    ),
    "an alias of 300 characters": (
        SCORE, JSON, HEAD + b'"options": {"lora_id": "' + b"x" * 300 + b'"}}', "$.options.lora_id",
    ),
    "a profile of 300 characters": (
        SCORE, JSON, HEAD + b'"options": {"profile": "' + b"x" * 300 + b'"}}', "$.options.profile",
    ),
    "output types": (
        "/v1/encode/toy/encoder", JSON,
        b'{"items": [{"text": "a"}], "params": {"output_types": [' + b'"dense",' * 20 + b'"dense"]}}', "output_types",
    ),
    "msgpack options": (SCORE, MSGPACK, PACKED + b"\xa7options\x81\xa1u" + LIST + b"\x01" * MANY, "64 KiB"),
    "a msgpack multivector": (
        SCORE, MSGPACK,
        b"\x82\xa5query\x81\xa4text\xa1q\xa5items\x91\x81\xabmultivector" + LIST + b"\x01" * MANY, "multivector",
    ),
    "msgpack items": (
        SCORE, MSGPACK, b"\x82\xa5query\x81\xa4text\xa1q\xa5items" + LIST + b"\x80" * MANY, "$.items",
    ),
    "a promise of items": (SCORE, MSGPACK, b"\x82\xa5query\x80\xa5items\xdd\xff\xff\xff\xff", "$.items"),
    "a promise of options": (SCORE, MSGPACK, PACKED + b"\xa7options\xdf\xff\xff\xff\xff", "msgpack"),
    "a long model id": (EMBED, JSON, b'{"input": "a", "model": ' + LONG_ID + b"}", "200 characters"),
    "a model id of 201 characters": (EMBED, JSON, b'{"input": "a", "model": "' + b"x" * 201 + b'"}', "$.model"),
    "inputs": (EMBED, JSON, b'{"model": "toy/encoder", "input": [' + b'"",' * 200_000 + b'""]}', "$.input"),
    "numbers as inputs": (EMBED, JSON, b'{"model": "toy/encoder", "input": [' + b"1," * MANY + b"1]}", "values"),
    "a long model id of a dialect": (
        "/v1/rerank", JSON, b'{"query": "q", "documents": ["a"], "model": ' + LONG_ID + b"}", "200 characters",
    ),
    "fields of a dialect": (
        "/v1/rerank", JSON, RERANK + b",".join(b'"f%d": 1' % i for i in range(10_000)) + b"}", "10,000",
    ),
    "an unknown field of a dialect": ("/rerank", JSON, RERANK + b'"u": [' + b"{}," * MANY + b"1]}", "100,000 lists"),
    "a long name of a field": ("/v2/rerank", JSON, RERANK + LONG_ID + b": 1}", "unknown field `xxx"),
    "documents of a dialect": (
        "/v1/rerank", JSON, b'{"query": "q", "documents": [' + b'"",' * 200_000 + b'""]}', "100,000",
    ),
    "texts of vLLM": ("/score", JSON, b'{"text_1": "q", "text_2": [' + b'"",' * 200_000 + b'""]}', "100,000"),
    "inputs of TEI": ("/embed", JSON, b'{"inputs": [' + b'"",' * 200_000 + b'""]}', "100,000"),
    "rank fields": (
        "/v1/rerank", JSON,
        b'{"query": "q", "documents": [{"a": "b"}], "rank_fields": [' + b'"a",' * 5000 + b'"a"]}', "rank_fields",
    ),
    "an admin's unknown field": ("/v1/admin/unload", JSON, b'{"model": "m", ' + LONG_ID + b": 1}", "unknown field"),
    "an admin's long id": ("/v1/admin/unload", JSON, b'{"model": ' + LONG_ID + b"}", "$.model"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_body_with_too_much_in_it_is_refused_in_few_bytes(server: Server, name: str) -> None:
    path, media, body, word = TOO_MUCH[name]
    assert len(body) < MAX_BODY
    answer = server.post(path, body, content_type=media)
    assert answer.status_code == 400, answer.text[:500]
    assert answer.headers["x-sie-error-code"] == "INVALID_INPUT"
    assert len(answer.content) < 10_000
    assert word in answer.text


ODD = ["x", "\x00", "\x1b", "😀", '"', "é"]


@pytest.mark.parametrize("unit", ODD)
def test_errors_that_quote_a_value_are_small(server: Server, unit: str) -> None:
    long = unit * 50_000
    bodies: list[tuple[str, Any]] = [
        (EMBED, {"model": long, "input": "a"}),
        (EMBED, {"model": f"toy/encoder:{long}", "input": "a"}),
        (EMBED, {"model": f"{unit * 150}", "input": "a"}),
        (SCORE, with_options(normalize=long[:20_000])),
        (SCORE, with_options(**{long[:5000]: 1, "top_n": 0})),
        (SCORE, {**GOOD, "query": {long: 1}}),
        ("/v1/encode/toy/encoder", {"items": ITEMS, "params": {"output_dtype": long}}),
        ("/v2/rerank", {"model": BERT, "query": "q", "documents": ["a"], long: 1}),
        (
            "/v1/rerank",
            {"model": BERT, "query": "q", "documents": [{long: 1}], "rank_fields": [unit * 200] * 100},
        ),
        (
            "/v1/ranking",
            {"model": BERT, "query": {"text": "q"}, "passages": [{"text": "a"}], "truncate": long},
        ),
        ("/v1/admin/load", {"model": unit * 200, "source": unit * 1000}),
        ("/v1/admin/swap", {"model": BERT, "source": unit * 1000, "revision": unit * 200}),
    ]
    for path, body in bodies:
        answer = server.post(path, body)
        assert 400 <= answer.status_code < 500, answer.text[:500]
        assert len(answer.content) < 10_000, path


@pytest.mark.parametrize("unit", ODD)
def test_warnings_are_few_and_short(server: Server, unit: str) -> None:
    names = {unit * 200 + str(i): 1 for i in range(15)}
    answer = server.post(SCORE, with_options(**names))
    assert answer.status_code == 200
    warnings = answer.json()["warnings"]
    assert len(warnings) == 11 and "5 more" in warnings[-1]
    assert all(len(warning) < 150 for warning in warnings)
    for path in ("/v1/rerank", "/rerank", "/cohere/v1/rerank"):
        fields = {unit * 900 + str(i): 1 for i in range(200)}
        answer = server.post(path, {"model": BERT, "query": "q", "documents": ["a"], **fields})
        assert answer.status_code == 200
        assert len(answer.headers["x-sie-warnings"]) < 4000
        assert "more" in json.loads(answer.headers["x-sie-warnings"])[-1]


def test_large_bodies_are_decoded_beside_small_requests(server: Server, bystander: Bystander) -> None:
    """A body above 1 MiB is decoded on a thread, and its answer is the same."""
    item = {"text": "rain falls", "metadata": {"notes": "x" * 3_000_000}}
    expected = server.post(SCORE, GOOD).json()["scores"][0]["score"]
    for media in (JSON, MSGPACK):
        answer = server.post(SCORE, {**GOOD, "items": [item]}, content_type=media)
        assert answer.json()["scores"][0]["score"] == pytest.approx(expected, abs=1e-6)
    answer = server.post(
        "/v1/rerank", {"model": BERT, "query": "rain", "documents": ["rain falls"], "x": "y" * 3_000_000}
    )
    assert answer.status_code == 200 and "`x`" in answer.headers["x-sie-warnings"]
    answer = server.post(EMBED, {"model": "toy/encoder", "input": "rain " * 500_000})
    assert answer.status_code == 200


def repr_of(value: str) -> str:
    return repr(value).replace("::", "..")  # pytest-xdist groups tests by the part of an id before "::"


@pytest.mark.parametrize("host", ["a/b", "a?", "a#", "x/v1/score", "[::", ""], ids=repr_of)
def test_a_host_header_does_not_change_the_route(server: Server, host: str) -> None:
    body = json.dumps({"model": BERT, "query": "rain", "documents": ["rain falls"]}).encode()
    with server.raw() as connection:
        head = f"POST /v1/rerank HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = read_answer(connection)
    assert answer.status_code in (200, 400), answer.text


# ── too large ──


def read_answer(connection: socket.socket) -> httpx.Response:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


@pytest.mark.parametrize("length", [MAX_BODY + 1, 10**12])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: Server, length: int, expect: str) -> None:
    with server.raw() as connection:
        head = f"POST /v1/score/{BERT} HTTP/1.1\r\nHost: x\r\n{expect}Content-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        refused(read_answer(connection), 413, "INPUT_TOO_LONG", "8 MiB", "max_body_mb")


def test_a_body_over_the_limit_without_a_length(server: Server) -> None:
    """The answer to a chunked body comes as soon as it exceeds the limit, although the body never ends."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with server.raw() as connection:
        head = f"POST /v1/score/{BERT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        try:
            for _ in range(MAX_BODY // 0x10000 + 1):
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server may close the connection early
        refused(read_answer(connection), 413, "INPUT_TOO_LONG", "8 MiB")


def test_a_body_just_below_the_limit_is_read(server: Server) -> None:
    body = WHOLE_JSON + b" " * (MAX_BODY - len(WHOLE_JSON))
    assert server.post(f"/v1/score/{BERT}", body).status_code == 200
    refused(server.post(f"/v1/score/{BERT}", body + b" "), 413, "INPUT_TOO_LONG")


def test_a_chunked_body_below_the_limit_is_read(server: Server) -> None:
    chunks = (WHOLE_JSON[i : i + 7] for i in range(0, len(WHOLE_JSON), 7))
    answer = httpx.post(f"{server.base_url}/v1/score/{BERT}", content=chunks, headers={"accept": JSON})
    found, expected = answer.json(), server.post(f"/v1/score/{BERT}", GOOD).json()
    scores, wanted = ([entry["score"] for entry in given["scores"]] for given in (found, expected))
    assert found["usage"] == expected["usage"]
    assert scores == pytest.approx(wanted, abs=1e-6)  # the bystander's request may be in the same batch


# ── a broken model ──


def test_a_score_is_never_nan(server: Server) -> None:
    for accept in (JSON, MSGPACK):
        answer = server.post("/v1/score/toy/nan", {**GOOD, "items": UNKNOWN * 3}, accept=accept)
        refused(answer, 500, "INFERENCE_ERROR", "$.items[0]", "weights")


def test_a_vector_is_never_nan(server: Server) -> None:
    for accept in (JSON, MSGPACK):
        answer = server.post("/v1/encode/toy/nan-encoder", {"items": UNKNOWN * 3}, accept=accept)
        refused(answer, 500, "INFERENCE_ERROR", "$.items[0]", "weights")


# ── unusual but valid ──


@pytest.fixture(scope="module")
def reference(models: Path) -> Any:
    """Return a function that scores with transformers."""
    loaded: dict[str, Any] = {}

    def score(name: str, query: str, text: str) -> float:
        if name not in loaded:
            folder = models / name
            loaded[name] = (
                transformers.AutoTokenizer.from_pretrained(folder),
                transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval(),
            )
        tokenizer, model = loaded[name]
        pair = [[query, text]]
        inputs = tokenizer(
            pair, truncation="longest_first", max_length=128, return_token_type_ids=True, return_tensors="pt"
        )
        with torch.inference_mode():
            return float(torch.sigmoid(model(**inputs).logits.double())[0, 0])

    return score


NASTY = {
    "NUL": "rain\x00falls \x00",
    "only NUL": "\x00\x00",
    "blanks": " \t\n\u00a0\u2003 ",
    "emoji": "🌧️👩‍👩‍👧‍👦🇪🇺😀",
    "control characters": "".join(map(chr, [*range(1, 32), 127, 0x85, 0x200B, 0x202E, 0xFEFF])),
    "noncharacters": "\uffff\U0010ffff\ufdd0",
    "combining marks": "e" + "\u0301" * 200,
    "special tokens": "[CLS] rain [SEP] falls [PAD] <s> </s> <mask> [MASK]",
    "right to left": "مطر غدا על הנמל",
    "one long word": "x" * 5000,
    "nothing": "",
}


@pytest.mark.parametrize("model", ["toy/bert", "toy/roberta", "toy/xlm-roberta"])
@pytest.mark.parametrize("name", NASTY)
def test_odd_texts_score_as_in_transformers(server: Server, reference: Any, model: str, name: str) -> None:
    text = NASTY[name]
    expected = reference(model, "rain falls tomorrow", text)
    assert server.scores(model, "rain falls tomorrow", [text, "company"])[0] == pytest.approx(
        expected, abs=1e-4
    )
    packed = server.post(
        f"/v1/score/{model}",
        {"query": {"text": "rain falls tomorrow"}, "items": [{"text": text}]},
        content_type=MSGPACK,
    )
    assert packed.json()["scores"][0]["score"] == pytest.approx(expected, abs=1e-4)
    if len(text) < 100:
        asked = server.scores(model, text, ["rain falls tomorrow"])[0]
        assert asked == pytest.approx(reference(model, text, "rain falls tomorrow"), abs=1e-4)


@pytest.mark.parametrize("name", NASTY)
def test_odd_texts_have_vectors(server: Server, name: str) -> None:
    body = {"items": [{"text": NASTY[name]}], "params": {"output_types": ["dense", "multivector"]}}
    [item] = server.post("/v1/encode/sie/mini-en", body).json()["items"]
    assert sum(value**2 for value in item["dense"]["values"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("model", ["toy/bert", "toy/roberta", "toy/xlm-roberta", "sie/mini-en"])
@pytest.mark.parametrize("unit", ["rain falls tomorrow ", "x", " ", "東京", "\x00"])
def test_a_document_of_two_megabytes(server: Server, model: str, unit: str) -> None:
    text = unit * (2_000_000 // len(unit.encode()))
    body = {"query": {"text": "rain"}, "items": [{"text": text}, {"text": "rain falls"}]}
    response = server.post(f"/v1/score/{model}", body, content_type=MSGPACK)
    assert response.status_code == 200, response.text[:500]
    answer = response.json()
    assert len(answer["scores"]) == 2
    [entry] = [entry for entry in answer["scores"] if entry["item_id"] == "item-0"]
    assert all(0 <= entry["score"] <= 1.5 for entry in answer["scores"])
    if unit.startswith("rain"):
        assert entry["truncated"] is True and "1 of 2 texts" in answer["warnings"][0]
        limit = 128 if model.startswith("toy") else 256
        assert answer["usage"]["input_tokens"] <= 2 * limit + 8
        short = server.scores(model, "rain", [unit * 400])[0]  # truncation leaves the same tokens
        assert entry["score"] == pytest.approx(short, abs=1e-5)
    else:
        assert entry.get("truncated", False) == any("1 of 2 texts" in w for w in answer.get("warnings", []))


def test_others_are_answered_while_a_document_of_two_megabytes_is_read(
    server: Server, bystander: Bystander
) -> None:
    before = bystander.answered
    for _ in range(5):
        server.score(BERT, "rain", ["rain falls tomorrow " * 100_000])
    assert bystander.answered > before


@pytest.mark.parametrize("model", ["toy/bert", "toy/xlm-roberta", "sie/mini-en"])
def test_a_query_of_one_megabyte(server: Server, model: str) -> None:
    answer = server.score(model, "rain falls tomorrow " * 50_000, ["rain falls", "stars burn"])
    assert len(answer["scores"]) == 2
    [warning] = answer["warnings"]
    assert "query" in warning and "cut" in warning


def test_ten_thousand_candidates(server: Server) -> None:
    texts = [f"{'rain' if i % 2 else 'stars'} number {i % 100}" for i in range(10_000)]
    scores = server.score(BERT, "rain", texts)["scores"]
    assert [entry["rank"] for entry in scores] == list(range(10_000))
    assert {entry["item_id"] for entry in scores} == {f"item-{i}" for i in range(10_000)}
    by_id = {entry["item_id"]: entry["score"] for entry in scores}
    alone = server.scores(BERT, "rain", texts[:100])
    for i in (0, 1, 57, 99):
        assert [by_id[f"item-{i + 100 * k}"] for k in range(100)] == pytest.approx([alone[i]] * 100, abs=1e-6)


def test_ten_thousand_equal_candidates(server: Server) -> None:
    body = {"query": {"text": "rain"}, "items": [{"id": "same", "text": "rain"}] * 10_000}
    answer = server.post(f"/v1/score/{BERT}", body, content_type=MSGPACK, accept=MSGPACK)
    entries = msgpack.unpackb(answer.content)["scores"]
    assert len(entries) == 10_000
    assert {entry["item_id"] for entry in entries} == {"same"}
    assert max(e["score"] for e in entries) - min(e["score"] for e in entries) < 1e-6


def test_many_vectors_are_the_same_as_few(server: Server) -> None:
    """The vectors of a large response are encoded on a thread."""
    texts = [f"rain {i % 7}" for i in range(150)]

    def vectors(few: list[str]) -> list[list[list[float]]]:
        items, headers = [{"text": text} for text in few], {"content-type": JSON}
        in_json = server.post("/v1/encode/toy/encoder", {"items": items}).json()["items"]
        packed = server.post("/v1/encode/toy/encoder", {"items": items}, accept=MSGPACK).content
        in_msgpack = msgpack.unpackb(packed, strict_map_key=False)["items"]
        openai = server.post(EMBED, {"model": "toy/encoder", "input": few}, headers=headers).json()["data"]
        tei = server.post("/embed", {"model": "toy/encoder", "inputs": few}).json()
        return [
            [item["dense"]["values"] for item in in_json],
            [np.frombuffer(item["dense"]["values"][b"data"], "<f4").tolist() for item in in_msgpack],
            [item["embedding"] for item in openai],
            tei,
        ]

    few = [np.array(found) for found in vectors(texts[:7])]
    for one, found in zip(few, vectors(texts), strict=True):
        assert len(found) == 150
        np.testing.assert_allclose(found, np.tile(one, (22, 1))[:150], atol=1e-5)
