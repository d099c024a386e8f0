"""Both clients on a simulated network: the bytes they send, and how they read responses."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

import sie_sdk
from sie_sdk import Item, ProtocolError, RequestError, SIEError, errors
from sie_sdk.codec import decode_body, encode_body

Connect = Callable[..., Any]
Answer = Callable[..., httpx.Response]

SCORED = {
    "model": "org/name",
    "query_id": None,
    "scores": [{"item_id": "b", "score": 0.75, "rank": 0}, {"item_id": "item-0", "score": 0.25, "rank": 1}],
    "usage": {"input_tokens": 9},
}
BEST = SCORED | {"scores": SCORED["scores"][:1]}
QUERY, ITEMS = Item(text="q"), [Item(text="a"), Item(id="b", text="b")]


class Recorder:
    """A handler that records requests and sends the given answers in order, repeating the last one."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = answers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        chosen = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if isinstance(chosen, Exception):
            raise chosen
        return httpx.Response(chosen.status_code, headers=chosen.headers, content=chosen.content)

    @property
    def sent(self) -> Any:
        return decode_body(self.requests[-1].content)


# ── score ───────────────────────────────────────────────────────────────────────────────────


def test_score_sends_the_documented_request(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(BEST))
    client = connect(wire, "http://host:9/prefix/")
    client.score("org/name", QUERY, ITEMS, instruction="rank", options={"top_n": 1, "profile": "p"})
    request = wire.requests[0]
    assert (request.method, str(request.url)) == ("POST", "http://host:9/prefix/v1/score/org/name")
    assert request.headers["content-type"] == "application/msgpack"
    assert request.headers["accept"] == "application/msgpack"
    assert msgpack.unpackb(request.content) == {
        "query": {"text": "q"},
        "items": [{"text": "a"}, {"id": "b", "text": "b"}],
        "instruction": "rank",
        "options": {"top_n": 1, "profile": "p"},
    }


def test_score_returns_the_dict_the_server_sent(connect: Connect, answer: Answer) -> None:
    body = SCORED | {"warnings": ["options.colour is unknown"], "new_key": 1}
    result = connect(Recorder(answer(body))).score("org/name", QUERY, ITEMS)
    assert result == body
    assert result["scores"][0]["item_id"] == "b"
    assert "request_id" not in result


def test_score_surfaces_the_request_id(connect: Connect, answer: Answer) -> None:
    result = connect(Recorder(answer(SCORED, x_sie_request_id="req-7"))).score("org/name", QUERY, ITEMS)
    assert result["request_id"] == "req-7"


def test_score_takes_keywords_tuples_and_plain_dicts(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(SCORED))
    connect(wire).score("org/name", query={"text": "q", "id": "q1"}, items=({"text": ""}, {"id": "b"}))
    assert wire.sent == {"query": {"text": "q", "id": "q1"}, "items": [{"text": ""}, {"id": "b"}]}


def test_multivectors_go_out_as_arrays(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(BEST))
    vectors = np.arange(6, dtype=np.float16).reshape(2, 3)
    connect(wire).score("org/name", Item(multivector=vectors), [Item(id="b", multivector=vectors.T)])
    raw = msgpack.unpackb(wire.requests[0].content)
    assert raw["query"]["multivector"][b"type"] == "<f2"
    np.testing.assert_array_equal(wire.sent["items"][0]["multivector"], vectors.T)


@pytest.mark.parametrize(
    ("query", "items", "where"),
    [
        ("text", [{"text": "a"}], r"^query is a str; pass Item\(text=\.\.\.\)"),
        ({"text": "q"}, ["a", "b"], r"^items\[0\] is a str; pass Item\(text=\.\.\.\)"),
        ({"text": "q"}, [{"text": "a"}, None], r"^items\[1\] is a NoneType"),
        ({"text": "q"}, {"text": "a"}, r"^items is a dict; pass a list"),
        ({"text": "q"}, "a", r"^items is a str; pass a list"),
        ({"text": "q"}, None, r"^items is a NoneType"),
        ({"text": "q"}, [], r"^items is empty"),
        (None, [{"text": "a"}], r"^query is a NoneType"),
        ({"text": "q", "metadata": {"x": object()}}, [{"text": "a"}], r"cannot be sent: .*builtins\.object"),
        ({"text": "\ud800"}, [{"text": "a"}], r"cannot be sent"),
    ],
)
def test_wrong_arguments_are_reported_before_sending(
    connect: Connect, query: Any, items: Any, where: str
) -> None:
    wire = Recorder(httpx.Response(500))
    with pytest.raises(RequestError, match=where) as caught:
        connect(wire).score("org/name", query, items)
    assert (caught.value.code, caught.value.status) == ("INVALID_INPUT", None)
    assert wire.requests == []


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("org/name", "/v1/score/org/name"),
        ("Org/Name-v2.5_x", "/v1/score/Org/Name-v2.5_x"),
        ("org/name:adapter", "/v1/score/org/name:adapter"),
        ("a b?c#d%2F&e", "/v1/score/a%20b%3Fc%23d%252F%26e"),
        ("modèle", "/v1/score/mod%C3%A8le"),
    ],
)
def test_model_ids_in_the_path(connect: Connect, answer: Answer, model: str, path: str) -> None:
    wire = Recorder(answer(SCORED))
    connect(wire).score(model, QUERY, ITEMS)
    assert wire.requests[0].url.raw_path.decode() == path


@pytest.mark.parametrize("model", ["", "/", "a//b", "../models", "a/../../b", "./a", "a/", None, 7])
def test_ids_that_would_reach_another_route_are_refused(connect: Connect, model: Any) -> None:
    wire = Recorder(httpx.Response(500))
    client = connect(wire)
    for call in (lambda: client.score(model, QUERY, ITEMS), lambda: client.get_model(model)):
        with pytest.raises(RequestError, match="model"):
            call()
    assert wire.requests == []


def without(path: str, value: Any = ...) -> dict[str, Any]:
    """Return SCORED with a key removed or replaced; `scores.1.rank` names a key of an entry."""
    body = decode_body(encode_body(SCORED))
    target: Any = body
    *parents, last = path.split(".")
    for name in parents:
        target = target[int(name) if name.isdigit() else name]
    if value is ...:
        del target[last]
    else:
        target[int(last) if last.isdigit() else last] = value
    return body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (without("model"), "has no `model`"),
        (without("scores"), "has no `scores`"),
        (without("scores", {}), "`scores` is a dict, not list"),
        (without("scores.1.item_id"), r"has no `scores\[1\]\.item_id`"),
        (without("scores.0.score"), r"has no `scores\[0\]\.score`"),
        (without("scores.1.rank"), r"has no `scores\[1\]\.rank`"),
        (without("scores.1.score", "0.5"), r"`scores\[1\]\.score` is a str, not float"),
        (without("scores.1.score", None), r"`scores\[1\]\.score` is a NoneType"),
        (without("scores.1.rank", True), r"`scores\[1\]\.rank` is a bool"),
        (without("scores.1", "x"), r"`scores\[1\]` is a str, not a map"),
        ([], "the answer is a list, not a map"),
    ],
)
def test_an_answer_that_breaks_the_contract_says_where(
    connect: Connect, answer: Answer, body: Any, words: str
) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        connect(Recorder(answer(body, x_sie_request_id="r-1"))).score("org/name", QUERY, ITEMS)
    assert (caught.value.status, caught.value.request_id) == (200, "r-1")


@pytest.mark.parametrize(
    "content", [b"", b"<html></html>", encode_body(SCORED) + b"\x00", encode_body(SCORED)[:-1]]
)
def test_an_answer_that_is_not_msgpack_is_a_protocol_error(connect: Connect, content: bytes) -> None:
    wire = Recorder(httpx.Response(200, content=content, headers={"content-type": "text/html"}))
    with pytest.raises(ProtocolError, match=r"not valid application/msgpack.*text/html"):
        connect(wire).score("org/name", QUERY, ITEMS)
    assert len(wire.requests) == 1


def test_the_calls_of_the_guide(connect: Connect, answer: Answer) -> None:
    from sie_sdk.types import Item

    top_100_docs = [{"text": "first"}, {"text": "second"}]
    entries = [{"item_id": f"doc-{1 - rank}", "score": 0.75 - rank / 2, "rank": rank} for rank in (0, 1)]
    result = connect(Recorder(answer(SCORED | {"scores": entries})), "http://localhost:8080").score(
        "BAAI/bge-reranker-v2-m3",
        query=Item(text="What is machine learning?"),
        items=[Item(id=f"doc-{i}", text=doc["text"]) for i, doc in enumerate(top_100_docs)],
    )
    lines = [
        f"{entry['item_id']}: rank={entry['rank']}, score={entry['score']:.3f}" for entry in result["scores"]
    ]
    assert lines == ["doc-1: rank=0, score=0.750", "doc-0: rank=1, score=0.250"]
    assert (result["model"], result["query_id"]) == ("org/name", None)


# ── encode ──────────────────────────────────────────────────────────────────────────────────


def encoded(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "items": list(items),
        "timing": {"total_ms": 1.0},
        "usage": {"input_tokens": 2},
    } | more


def dense(values: Any) -> dict[str, Any]:
    return {"dims": 2, "dtype": "float32", "values": np.asarray(values, dtype=np.float32)}


def test_encode_sends_the_documented_request(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(encoded({"dense": dense([1, 2])})))
    client = connect(wire)
    client.encode(
        "BAAI/bge-m3",
        Item(text="t"),
        is_query=True,
        output_types=["dense", "sparse"],
        output_dtype="float16",
        instruction="i",
        options={"profile": "p"},
    )
    assert wire.requests[0].url.path == "/v1/encode/BAAI/bge-m3"
    assert wire.sent == {
        "items": [{"text": "t"}],
        "params": {
            "output_types": ["dense", "sparse"],
            "output_dtype": "float16",
            "instruction": "i",
            "options": {"profile": "p", "is_query": True},
        },
    }
    client.encode("m", Item(text="t"))
    assert wire.sent == {"items": [{"text": "t"}]}
    client.encode("m", Item(text="t"), is_query=False)
    assert wire.sent["params"] == {"options": {"is_query": False}}


def test_encode_returns_one_result_for_one_item_and_a_list_for_a_list(
    connect: Connect, answer: Answer
) -> None:
    one = connect(
        Recorder(
            answer(
                encoded(
                    {"id": "a", "dense": dense([1, 2])},
                ),
                x_sie_request_id="r",
            )
        )
    )
    single = one.encode("m", Item(id="a", text="t"))
    assert (single["id"], single["dense"].tolist(), single["request_id"]) == ("a", [1.0, 2.0], "r")
    assert [result["dense"].tolist() for result in one.encode("m", [Item(text="t")])] == [[1.0, 2.0]]
    two = connect(Recorder(answer(encoded({"dense": dense([1, 2])}, {"dense": dense([3, 4])}))))
    results = two.encode("m", [Item(text="t"), Item(text="u")])
    assert [result["dense"].tolist() for result in results] == [[1.0, 2.0], [3.0, 4.0]]


def test_encode_unwraps_every_kind_of_vector(connect: Connect, answer: Answer) -> None:
    tokens = np.arange(6, dtype=np.float16).reshape(3, 2)
    item = {
        "dense": {"dims": 16, "dtype": "ubinary", "values": np.array([255, 1], dtype=np.uint8)},
        "sparse": {
            "dims": 30_000,
            "dtype": "float32",
            "indices": np.array([3, 17], dtype=np.int32),
            "values": np.array([0.5, 0.25], dtype=np.float32),
        },
        "multivector": {"token_dims": 2, "num_tokens": 3, "dtype": "float16", "values": tokens},
    }
    result = connect(Recorder(answer(encoded(item)))).encode("m", Item(text="t"))
    assert result["dense"].dtype == np.uint8
    assert result["dense"].tolist() == [255, 1]
    assert result["sparse"].keys() == {"indices", "values"}
    assert (result["sparse"]["indices"].tolist(), result["sparse"]["values"].tolist()) == (
        [3, 17],
        [0.5, 0.25],
    )
    assert (result["multivector"].dtype, result["multivector"].tolist()) == (np.float16, tokens.tolist())


def test_a_nil_vector_is_an_absent_one(connect: Connect, answer: Answer) -> None:
    body = encoded({"id": None, "dense": dense([1, 2]), "sparse": None})
    result = connect(Recorder(answer(body))).encode("m", Item(text="t"))
    assert result.keys() == {"id", "dense"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "m"}, "has no `items`"),
        (encoded(), "0 results for 1 items"),
        (encoded({}, {}), "2 results for 1 items"),
        (encoded({"dense": {"dims": 2}}), r"has no `items\[0\]\.dense\.values`"),
        (encoded({"dense": [1.0, 2.0]}), r"`items\[0\]\.dense` is a list"),
        (encoded({"dense": {"values": [1.0]}}), r"`items\[0\]\.dense\.values` is a list, not ndarray"),
        (encoded({"dense": dense([[1, 2]])}), r"dense\.values` has shape \(1, 2\)"),
        (encoded({"multivector": dense([1, 2])}), r"multivector\.values` has shape \(2,\)"),
        (encoded({"sparse": dense([1, 2])}), r"has no `items\[0\]\.sparse\.indices`"),
        (encoded(7), r"`items\[0\]` is a int, not a map"),
    ],
)
def test_an_encode_answer_that_breaks_the_contract_says_where(
    connect: Connect, answer: Answer, body: Any, words: str
) -> None:
    with pytest.raises(ProtocolError, match=words):
        connect(Recorder(answer(body))).encode("m", Item(text="t"))


def test_encode_warnings_are_logged(
    connect: Connect, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    body = encoded({"dense": dense([1, 2])}, warnings=["items[0].text was cut"])
    connect(Recorder(answer(body))).encode("m", Item(text="t"))
    assert [record.getMessage() for record in caplog.records if record.name == "sie_sdk"] == [
        "encode: items[0].text was cut"
    ]


def test_encode_refuses_invalid_arguments(connect: Connect) -> None:
    client = connect(Recorder(httpx.Response(500)))
    for items, words in (
        ("text", "items is a str"),
        (["text"], r"items\[0\] is a str"),
        ([], "items is empty"),
    ):
        with pytest.raises(RequestError, match=words):
            client.encode("m", items)
    with pytest.raises(RequestError, match="output_types is a string"):
        client.encode("m", Item(text="t"), output_types="dense")


# ── models ──────────────────────────────────────────────────────────────────────────────────

MODEL = {"name": "org/name", "loaded": False, "inputs": ["text"], "outputs": ["score"], "state": "available"}


def test_models_are_listed_and_looked_up_as_json(connect: Connect) -> None:
    wire = Recorder(httpx.Response(200, json={"models": [MODEL], "object": "list", "data": []}))
    client = connect(wire)
    assert client.list_models() == [MODEL]
    assert (wire.requests[0].method, wire.requests[0].url.path) == ("GET", "/v1/models")
    assert wire.requests[0].headers["accept"] == "application/json"
    wire = Recorder(httpx.Response(200, json=MODEL))
    assert connect(wire).get_model("org/name") == MODEL
    assert wire.requests[0].url.path == "/v1/models/org/name"


@pytest.mark.parametrize("key", ["name", "loaded", "inputs", "outputs"])
def test_model_answers_lacking_a_key_are_protocol_errors(connect: Connect, key: str) -> None:
    broken = {name: value for name, value in MODEL.items() if name != key}
    with pytest.raises(ProtocolError, match=rf"has no `models\[1\]\.{key}`"):
        connect(Recorder(httpx.Response(200, json={"models": [MODEL, broken]}))).list_models()
    with pytest.raises(ProtocolError, match=f"has no `{key}`"):
        connect(Recorder(httpx.Response(200, json=broken))).get_model("org/name")


# ── both drivers carry out the flow ─────────────────────────────────────────────────────────


def refusal(status: int, code: str, wait: float | None = None) -> httpx.Response:
    headers = {} if wait is None else {"retry-after": str(wait)}
    return httpx.Response(status, json={"error": {"code": code, "message": f"about {code}"}}, headers=headers)


def test_a_loading_model_is_invisible_to_the_caller(connect: Connect, answer: Answer) -> None:
    loading, full = refusal(503, "MODEL_LOADING", 0.01), refusal(503, "QUEUE_FULL", 0.01)
    wire = Recorder(loading, full, refusal(429, "RATE_LIMITED", 0.01), answer(SCORED))
    assert connect(wire).score("org/name", QUERY, ITEMS) == SCORED
    assert len({request.content for request in wire.requests}) == 1
    assert len(wire.requests) == 4


def test_the_drivers_wait_between_tries(connect: Connect, answer: Answer, pauses: list[float]) -> None:
    wire = Recorder(refusal(503, "QUEUE_FULL", 20), answer(SCORED))
    connect(wire).score("org/name", QUERY, ITEMS)
    assert len(pauses) == 1 and 20 <= pauses[0] < 40


def test_the_deadline_of_one_call_overrides_the_clients(connect: Connect, pauses: list[float]) -> None:
    wire = Recorder(refusal(503, "MODEL_LOADING", 5))
    with pytest.raises(errors.ModelLoadingError, match="gave up after 1 try"):
        connect(wire, deadline=600).score("org/name", QUERY, ITEMS, deadline=1)
    with pytest.raises(errors.ModelLoadingError):
        connect(wire, deadline=1).list_models()
    assert pauses == []
    assert len(wire.requests) == 2


def test_an_error_is_raised_with_the_details_of_the_server(connect: Connect) -> None:
    response = httpx.Response(
        404,
        json={"error": {"code": "MODEL_NOT_FOUND", "message": "unknown; did you mean org/name?"}},
        headers={"X-SIE-Request-ID": "req-9"},
    )
    with pytest.raises(errors.ModelNotFoundError, match="did you mean org/name") as caught:
        connect(Recorder(response)).score("org/nam", QUERY, ITEMS)
    error = caught.value
    assert (error.code, error.status, error.request_id, error.retryable) == (
        "MODEL_NOT_FOUND",
        404,
        "req-9",
        False,
    )


@pytest.mark.parametrize(
    ("raised", "kind", "tries"),
    [
        (httpx.ConnectError("refused"), errors.SIEConnectionError, 3),
        (httpx.ConnectTimeout("slow"), errors.SIEConnectionError, 3),
        (httpx.ReadError("reset"), errors.SIEConnectionError, 3),
        (httpx.RemoteProtocolError("disconnected"), errors.SIEConnectionError, 3),
        (httpx.ReadTimeout("silent"), errors.SIETimeoutError, 1),
        (httpx.WriteTimeout("silent"), errors.SIETimeoutError, 1),
        (httpx.LocalProtocolError("bad header"), errors.SIEConnectionError, 1),
    ],
)
def test_failures_of_the_network(connect: Connect, raised: Exception, kind: type, tries: int) -> None:
    wire = Recorder(raised)
    with pytest.raises(errors.SIEConnectionError, match="http://localhost:8080") as caught:
        connect(wire).score("org/name", QUERY, ITEMS)
    assert type(caught.value) is kind
    assert len(wire.requests) == tries


def test_timeouts_reach_httpx(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(SCORED))
    connect(wire).score("org/name", QUERY, ITEMS)
    connect(wire, timeout=20).score("org/name", QUERY, ITEMS)
    connect(wire, timeout=20).score("org/name", QUERY, ITEMS, timeout=4)
    connect(wire).score("org/name", QUERY, ITEMS, timeout=2000)
    waits = [request.extensions["timeout"] for request in wire.requests]
    assert [pytest.approx(wait["read"], abs=0.1) for wait in waits] == [150, 20, 4, 2000]
    assert [pytest.approx(wait["connect"], abs=0.1) for wait in waits] == [10, 10, 4, 10]


@pytest.mark.parametrize(
    "params", [{"timeout": 0}, {"timeout": "5"}, {"deadline": -1}, {"deadline": float("nan")}]
)
def test_invalid_times_are_refused(connect: Connect, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive number of seconds"):
        connect(Recorder(httpx.Response(500))).score("org/name", QUERY, ITEMS, **params)


def test_an_unknown_keyword_is_a_type_error(connect: Connect) -> None:
    with pytest.raises(TypeError, match="top_n"):
        connect(Recorder(httpx.Response(500))).score("org/name", QUERY, ITEMS, top_n=3)


# ── headers ─────────────────────────────────────────────────────────────────────────────────


def test_headers_of_the_contract(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(SCORED))
    connect(wire).score("org/name", QUERY, ITEMS)
    connect(wire, api_key="k-1", machine_profile="l4", pool="p").score("org/name", QUERY, ITEMS)
    bare, full = (request.headers for request in wire.requests)
    assert bare["x-sie-sdk-version"] == sie_sdk.__version__ == "1.0.0+self.1"
    assert bare["user-agent"] == f"sie-sdk/{sie_sdk.__version__}"
    assert not {"authorization", "x-sie-machine-profile", "x-sie-pool"} & bare.keys()
    assert full["authorization"] == "Bearer k-1"
    assert (full["x-sie-machine-profile"], full["x-sie-pool"]) == ("l4", "p")


def test_the_callers_trace_is_continued(connect: Connect, answer: Answer) -> None:
    wire = Recorder(answer(SCORED))
    client = connect(wire)
    here = SpanContext(
        0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("v", "1")])
    )
    client.score("org/name", QUERY, ITEMS)
    with use_span(NonRecordingSpan(here)):
        client.score("org/name", QUERY, ITEMS)
    without, within = (request.headers for request in wire.requests)
    assert "traceparent" not in without and "tracestate" not in without
    assert within["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01" and within["tracestate"] == "v=1"


def test_the_client_does_not_import_opentelemetry() -> None:
    code = (
        "import sys, sie_sdk; sie_sdk.SIEClient('http://localhost:9'); print('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("server", "lines"), [("1.0.7", 0), ("1.1.0+self.2", 0), ("1.3.0", 1), ("0.10.1", 1), ("dev", 0)]
)
def test_a_version_skew_is_logged_once(
    connect: Connect, answer: Answer, caplog: pytest.LogCaptureFixture, server: str, lines: int
) -> None:
    client = connect(Recorder(answer(SCORED, x_sie_server_version=server)))
    with caplog.at_level(logging.WARNING, "sie_sdk"):
        for _ in range(3):
            client.score("org/name", QUERY, ITEMS)
    found = [record.getMessage() for record in caplog.records if record.name == "sie_sdk"]
    assert len(found) == lines
    assert all(server in line and sie_sdk.__version__ in line for line in found)


# ── open and close ──────────────────────────────────────────────────────────────────────────


def test_context_managers_close_the_connections(answer: Answer) -> None:
    import asyncio

    from sie_sdk import SIEAsyncClient, SIEClient

    transport = httpx.MockTransport(Recorder(answer(SCORED)))
    with SIEClient(transport=transport) as client:
        client.score("org/name", QUERY, ITEMS)
    with pytest.raises(SIEError, match="closed"):
        client.score("org/name", QUERY, ITEMS)

    async def use() -> None:
        async with SIEAsyncClient(transport=transport) as client:
            await client.score("org/name", QUERY, ITEMS)
        with pytest.raises(SIEError, match="closed"):
            await client.score("org/name", QUERY, ITEMS)

    asyncio.run(use())
