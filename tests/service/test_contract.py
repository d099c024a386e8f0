"""A real server follows docs/http-api.md byte for byte."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import product
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from sie_server import __version__
from support.servers.processes import JSON, MSGPACK, Server

BERT = "toy/bert"
MINI = "sie/mini-en"
TEXTS = ["machine learning learns patterns", "rain falls tomorrow", "stars burn hydrogen into helium"]
BODY = {"query": {"text": "learning from data"}, "items": [{"text": text} for text in TEXTS]}
LONG = "rain falls over the quiet harbour " * 100  # far beyond the 128 tokens of the toy models


def decode(answer: httpx.Response) -> Any:
    """Decode an answer by its content type."""
    if answer.headers["content-type"] == MSGPACK:
        return msgpack.unpackb(answer.content, strict_map_key=False)
    assert answer.headers["content-type"] == JSON
    return answer.json()


def array(packed: dict[bytes, Any]) -> np.ndarray[Any, Any]:
    """Return a numpy array from its array map, whose keys must be exactly those of docs/http-api.md#arrays."""
    assert list(packed) == [b"nd", b"type", b"kind", b"shape", b"data"]
    assert packed[b"nd"] is True and packed[b"kind"] == b"" and isinstance(packed[b"type"], str)
    return np.frombuffer(packed[b"data"], packed[b"type"]).reshape(packed[b"shape"])


# ── bodies and media types ──


@pytest.mark.parametrize(("sent", "wanted"), [*product([JSON, MSGPACK], repeat=2)])
def test_both_media_types_in_both_directions_are_equivalent(server: Server, sent: str, wanted: str) -> None:
    answer = server.post(f"/v1/score/{BERT}", BODY, content_type=sent, accept=wanted)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == wanted
    assert decode(answer) == server.score(BERT, "learning from data", TEXTS)


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        (None, MSGPACK),
        ("*/*", MSGPACK),
        ("application/msgpack", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("application/json, application/msgpack", MSGPACK),
        ("application/json, text/plain, */*", JSON),
        ("application/msgpack;q=0.5, application/json;q=0.9", JSON),
        ("application/msgpack;q=0.9, application/json;q=0.5", MSGPACK),
        ("application/msgpack;q=0.1, application/json", JSON),
        ("application/json;q=0", MSGPACK),
        ("text/html", MSGPACK),
    ],
)
def test_the_answer_has_the_requested_media_type(server: Server, accept: str | None, given: str) -> None:
    answer = server.post(f"/v1/score/{BERT}", BODY, accept=accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, given)


@pytest.mark.parametrize(
    "content_type",
    ["application/msgpack", "application/x-msgpack", "Application/MsgPack", "application/msgpack; charset=x"],
)
def test_content_types_that_mean_msgpack(server: Server, content_type: str) -> None:
    answer = server.post(f"/v1/score/{BERT}", msgpack.packb(BODY), content_type=content_type)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8", "text/plain", "x/y"])
def test_every_other_content_type_means_json(server: Server, content_type: str | None) -> None:
    answer = server.post(f"/v1/score/{BERT}", json.dumps(BODY).encode(), content_type=content_type)
    assert answer.status_code == 200, answer.text


def test_a_msgpack_answer_has_no_trailing_byte(server: Server) -> None:
    answer = server.post(f"/v1/score/{BERT}", BODY, accept=MSGPACK)
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(answer.content)
    unpacker.unpack()
    assert unpacker.tell() == len(answer.content) == int(answer.headers["content-length"])


# ── score ──


def test_the_keys_of_a_score_answer_come_in_order(server: Server) -> None:
    for media in (JSON, MSGPACK):
        answer = decode(server.post(f"/v1/score/{BERT}", BODY, accept=media))
        assert list(answer) == ["model", "query_id", "scores", "usage", "score_type"]
        assert [list(entry) for entry in answer["scores"]] == [["item_id", "score", "rank"]] * 3
        assert list(answer["usage"]) == ["input_tokens"]
        assert answer["usage"]["input_tokens"] > 0
        assert all(type(entry["score"]) is float for entry in answer["scores"])


def test_scores_are_float64_in_msgpack(server: Server) -> None:
    content = server.post(f"/v1/score/{BERT}", BODY, accept=MSGPACK).content
    assert content.count(b"\xa5score\xcb") == 3


@pytest.mark.parametrize("model", [BERT, "toy/roberta", "toy/xlm-roberta", MINI])
def test_entries_are_ranked_from_zero_by_falling_score(server: Server, model: str) -> None:
    scores = server.score(model, "learning from data", TEXTS)["scores"]
    assert [entry["rank"] for entry in scores] == [0, 1, 2]
    assert [e["score"] for e in scores] == sorted((e["score"] for e in scores), reverse=True)
    assert {entry["item_id"] for entry in scores} == {"item-0", "item-1", "item-2"}
    assert len({entry["score"] for entry in scores}) == 3


def test_the_embedded_model_ranks_relevant_texts_first(server: Server) -> None:
    texts = ["It will rain tomorrow.", "Machine learning learns from data.", "The cat sleeps."]
    [first, *_] = server.score(MINI, "What is machine learning?", texts)["scores"]
    assert first["item_id"] == "item-1"


def test_a_candidate_scores_the_same_alone_and_among_others(server: Server) -> None:
    together = server.scores(BERT, "learning from data", TEXTS)
    alone = [server.scores(BERT, "learning from data", [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-6)


def test_ids_are_echoed_and_generated_if_absent(server: Server) -> None:
    items = [{"id": "a", "text": TEXTS[0]}, {"text": TEXTS[1]}, {"id": "", "text": TEXTS[2]}]
    body = {"query": {"id": "q-1", "text": "rain"}, "items": items}
    answer = server.post(f"/v1/score/{BERT}", body).json()
    assert answer["query_id"] == "q-1"
    assert {entry["item_id"] for entry in answer["scores"]} == {"a", "item-1", ""}
    assert answer["model"] == BERT


def test_duplicate_ids_are_legal(server: Server) -> None:
    body = {"query": {"text": "rain"}, "items": [{"id": "x", "text": text} for text in TEXTS]}
    answer = server.post(f"/v1/score/{BERT}", body)
    assert answer.status_code == 200
    assert [entry["item_id"] for entry in answer.json()["scores"]] == ["x"] * 3


@pytest.mark.parametrize("model", [BERT, "toy/roberta", "toy/xlm-roberta", MINI])
@pytest.mark.parametrize("count", [2, 5, 7, 33, 100])
def test_the_same_text_always_ties_with_itself(server: Server, model: str, count: int) -> None:
    scores = server.score(model, "rain", ["rain falls over the harbour"] * count)["scores"]
    assert [entry["item_id"] for entry in scores] == [f"item-{i}" for i in range(count)]
    assert len({entry["score"] for entry in scores}) == 1


def test_ties_keep_the_order_of_the_request(server: Server) -> None:
    texts = ["rain falls"] * 20 + ["stars burn"] * 20
    ranked = [entry["item_id"] for entry in server.score(BERT, "rain", texts)["scores"]]
    rain, stars = [f"item-{i}" for i in range(20)], [f"item-{i}" for i in range(20, 40)]
    assert ranked in (rain + stars, stars + rain)


def test_the_empty_string_is_a_text(server: Server) -> None:
    [empty, other] = server.scores(BERT, "rain", ["", "rain falls"])
    assert 0 < empty < 1 and empty != other
    assert server.score(BERT, "", ["", "rain"])["scores"]


def test_null_and_absent_are_the_same(server: Server) -> None:
    nulls = dict.fromkeys(["id", "metadata", "multivector", "images", "audio", "video", "document"])
    body = {
        "query": {"text": "learning from data", **nulls},
        "items": [{"text": text, **nulls} for text in TEXTS],
        "instruction": None,
        "options": None,
    }
    for media in (JSON, MSGPACK):
        answer = server.post(f"/v1/score/{BERT}", body, content_type=media)
        assert answer.json() == server.score(BERT, "learning from data", TEXTS)
    nulls = dict.fromkeys(["profile", "instruction", "max_seq_length", "top_n", "is_query"])
    assert server.score(BERT, "learning from data", TEXTS, options=nulls) == answer.json()


def test_unknown_keys_are_ignored_at_every_level(server: Server) -> None:
    extra: dict[str, Any] = {"new": {"deep": [1, None, "x"]}}
    body = {
        "query": {"text": "learning from data", "metadata": {"a": 1}, **extra},
        "items": [{"text": text, **extra} for text in TEXTS],
        **extra,
    }
    assert server.post(f"/v1/score/{BERT}", body).json() == server.score(BERT, "learning from data", TEXTS)


def test_unknown_options_are_reported(server: Server) -> None:
    answer = server.score(BERT, "rain", TEXTS, options={"topn": 1, "return_documnts": True})
    assert len(answer["scores"]) == 3
    assert list(answer)[-1] == "warnings"
    assert len(answer["warnings"]) == 2
    assert "'return_documnts'" in answer["warnings"][0] and "'topn'" in answer["warnings"][1]


def test_top_n_returns_the_head_of_the_whole_ranking(server: Server) -> None:
    whole = server.score(BERT, "rain", TEXTS)["scores"]
    assert server.score(BERT, "rain", TEXTS, options={"top_n": 2})["scores"] == whole[:2]
    assert server.score(BERT, "rain", TEXTS, options={"top_n": 99})["scores"] == whole


@pytest.mark.parametrize("model", [BERT, "toy/roberta", "toy/xlm-roberta", MINI])
def test_a_truncated_text_is_marked_and_reported(server: Server, model: str) -> None:
    answer = server.score(model, "rain", ["short", LONG])
    marks = {entry["item_id"]: entry.get("truncated") for entry in answer["scores"]}
    assert marks == {"item-0": None, "item-1": True}
    assert len(answer["warnings"]) == 1
    assert re.search(r"1 of 2 texts .* max_seq_length (128|256) ", answer["warnings"][0])


@pytest.mark.parametrize("model", [BERT, "toy/xlm-roberta", MINI])
def test_a_truncated_query_is_reported(server: Server, model: str) -> None:
    answer = server.score(model, LONG, ["rain"])
    assert ["query" in warning and "cut" in warning for warning in answer["warnings"]] == [True]
    assert answer["query_truncated"] is True
    assert "truncated" not in answer["scores"][0]


def test_max_seq_length_limits_the_tokens_read(server: Server) -> None:
    text = "rain falls tomorrow over the quiet harbour and nobody reads contracts"
    short = server.score(BERT, "rain", [text], options={"max_seq_length": 8})
    whole = server.score(BERT, "rain", [text], options={"max_seq_length": 128})
    assert short["scores"][0]["truncated"] is True
    assert short["usage"]["input_tokens"] == 8 < whole["usage"]["input_tokens"]
    assert "max_seq_length 8" in short["warnings"][0]
    assert "warnings" not in whole


def test_usage_counts_tokens_without_padding(server: Server) -> None:
    alone = [server.score(BERT, "rain", [text])["usage"]["input_tokens"] for text in TEXTS]
    assert len(set(alone)) > 1
    assert server.score(BERT, "rain", TEXTS)["usage"]["input_tokens"] == sum(alone)


# ── routes, ids, headers ──


@pytest.mark.parametrize("model", ["toy/bert", "toy%2Fbert", "toy%2fbert", "%74oy/bert"])
def test_an_id_may_be_sent_raw_or_escaped(server: Server, model: str) -> None:
    assert server.post(f"/v1/score/{model}", BODY).json()["model"] == BERT
    assert server.get(f"/v1/models/{model}").json()["name"] == BERT


def test_ids_are_case_sensitive_and_unknown_ones_get_a_suggestion(server: Server) -> None:
    for answer in (server.post("/v1/score/toy/Bert", BODY), server.get("/v1/models/toy/Bert")):
        assert answer.status_code == 404
        assert answer.json()["code"] == "MODEL_NOT_FOUND"
        assert "did you mean 'toy/bert'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health_routes_say_ok(server: Server, path: str) -> None:
    answer = server.get(path)
    assert (answer.status_code, answer.text) == (200, "ok")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/encode", "/v1/nothing", "/docs/static/no.js"])
def test_an_unknown_route_is_a_404_with_an_error_body(server: Server, path: str) -> None:
    answer = server.post(path, BODY) if path.startswith("/v1") else server.get(path)
    assert answer.status_code == 404
    assert answer.headers["x-sie-error-code"] == answer.json()["code"] == "NOT_FOUND"
    assert path in answer.json()["error"]["message"]


def test_a_wrong_method_is_a_405_with_an_error_body(server: Server) -> None:
    answer = server.get(f"/v1/score/{BERT}")
    assert answer.status_code == 405
    assert answer.json()["code"] == "METHOD_NOT_ALLOWED"


def test_headers_of_an_answer(server: Server) -> None:
    answer = server.post(f"/v1/score/{BERT}", BODY)
    assert re.fullmatch(r"[\x21-\x7e]+", answer.headers["x-sie-request-id"])
    assert answer.headers["x-sie-server-version"] == __version__
    times = [float(answer.headers[f"x-{name}-time"]) for name in ("queue", "tokenization", "inference")]
    for name in ("queue", "tokenization", "inference", "total"):
        assert re.fullmatch(r"\d+\.\d\d", answer.headers[f"x-{name}-time"])
    assert times[1] > 0 and times[2] > 0
    assert float(answer.headers["x-total-time"]) >= max(times)


def test_request_ids_are_kept_if_visible_ascii_and_otherwise_generated(server: Server) -> None:
    def request_id(asked: bytes | None) -> str:
        headers = {} if asked is None else {"x-sie-request-id": asked}
        answer = httpx.get(f"{server.base_url}/healthz", headers=headers)  # type: ignore[arg-type]
        given: str = answer.headers["x-sie-request-id"]
        return given

    assert request_id(b"trace-42!") == "trace-42!"
    assert request_id(None) != request_id(None)
    for bad in ("hä".encode(), b"two words", b"x" * 200, b""):
        assert re.fullmatch(r"[0-9a-f]{32}", request_id(bad))


def test_errors_carry_the_headers_too(server: Server) -> None:
    answer = server.post(f"/v1/score/{BERT}", b"{", accept=MSGPACK)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == JSON
    assert answer.headers["x-sie-server-version"] == __version__
    assert answer.headers["x-sie-request-id"]


# ── models ──


def test_the_model_list_has_both_shapes(server: Server) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [model["name"] for model in listed["models"]]
    assert {BERT, "toy/roberta", "toy/xlm-roberta", "toy/encoder", MINI} <= set(names)
    first = [model["name"] for model in listed["models"] if model["state"] != "available"]
    assert names[0] == MINI  # the model of a request that names none
    assert names[: len(first)] == first  # loaded models come before the catalog
    assert [entry["id"] for entry in listed["data"]] == names
    assert all(entry["object"] == "model" for entry in listed["data"])


def test_a_models_entry(server: Server) -> None:
    info = server.get(f"/v1/models/{MINI}").json()
    assert info in server.get("/v1/models").json()["models"]
    assert info["name"] == MINI and info["loaded"] is True and info["state"] == "loaded"
    assert info["inputs"] == ["text"]
    assert info["outputs"] == ["score", "dense", "multivector"]
    assert info["dims"] == {"dense": 384, "multivector": 384}
    assert info["max_sequence_length"] == 256
    assert info["last_error"] is None and info["profiles"] == ["default"]


def test_describing_a_model_never_loads_it(server: Server) -> None:
    name = "BAAI/bge-reranker-v2-m3"  # in the catalog, and not used by other tests
    for _ in range(2):
        info = server.get(f"/v1/models/{name}").json()
        assert (info["loaded"], info["state"], info["outputs"]) == (False, "available", ["score"])


def test_a_toy_model_is_loaded_on_first_use(server: Server) -> None:
    server.score("toy/roberta", "q", ["a"])
    info = server.get("/v1/models/toy/roberta").json()
    assert (info["state"], info["outputs"], info["max_sequence_length"]) == ("loaded", ["score"], 128)


# ── encode ──

ENCODE = {"items": [{"id": "a", "text": TEXTS[0]}, {"text": TEXTS[1]}, {"id": "c", "text": ""}]}


def test_dense_vectors_in_both_media_types(server: Server) -> None:
    packed = decode(server.post("/v1/encode/toy/encoder", ENCODE, content_type=MSGPACK, accept=MSGPACK))
    plain = decode(server.post("/v1/encode/toy/encoder", ENCODE))
    assert list(packed) == list(plain) == ["model", "items", "timing", "usage"]
    assert set(plain["timing"]) == {"total_ms", "queue_ms", "tokenization_ms", "inference_ms"}
    assert [item.get("id") for item in plain["items"]] == ["a", None, "c"]
    for ours, same in zip(packed["items"], plain["items"], strict=True):
        vector = array(ours["dense"]["values"])
        assert (vector.dtype.str, vector.shape) == ("<f4", (48,))
        assert (ours["dense"]["dims"], ours["dense"]["dtype"]) == (48, "float32")
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector == pytest.approx(same["dense"]["values"], abs=1e-6)
    assert plain["usage"]["input_tokens"] == packed["usage"]["input_tokens"] > 0


def test_token_vectors_in_both_media_types(server: Server) -> None:
    body = {**ENCODE, "params": {"output_types": ["multivector", "dense"]}}
    packed = decode(server.post(f"/v1/encode/{MINI}", body, content_type=MSGPACK, accept=MSGPACK))
    plain = decode(server.post(f"/v1/encode/{MINI}", body))
    for ours, same in zip(packed["items"], plain["items"], strict=True):
        tokens = array(ours["multivector"]["values"])
        assert tokens.shape == (ours["multivector"]["num_tokens"], ours["multivector"]["token_dims"])
        assert tokens.shape[1] == 384 and tokens.dtype.str == "<f4"
        assert np.linalg.norm(tokens, axis=1) == pytest.approx(1, abs=1e-3)
        assert tokens == pytest.approx(np.array(same["multivector"]["values"]), abs=1e-5)
        assert array(ours["dense"]["values"]).shape == (384,)
    counts = [item["multivector"]["num_tokens"] for item in plain["items"]]
    assert counts[0] > counts[2] == 2  # the empty text has only its two special tokens


def test_scores_follow_from_the_vectors(server: Server) -> None:
    """The embedded model's score contains the cosine of its vectors, and ranks in the same order."""
    body = {"items": [{"text": text} for text in ["a cat", "a cat", "the stock market fell"]]}
    vectors = [
        np.array(item["dense"]["values"]) for item in server.post(f"/v1/encode/{MINI}", body).json()["items"]
    ]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    same, other = server.scores(MINI, "a cat", ["a cat", "the stock market fell"])
    assert same > other


@pytest.mark.parametrize(
    ("dtype", "type_code", "values"),
    [
        ("float16", "<f2", lambda v: v.astype(np.float16)),
        ("ubinary", "|u1", lambda v: np.packbits(v > 0)),
        ("binary", "|i1", lambda v: (np.packbits(v > 0).astype(np.int16) - 128).astype(np.int8)),
    ],
)
def test_output_dtypes(server: Server, dtype: str, type_code: str, values: Any) -> None:
    exact = array(
        decode(server.post("/v1/encode/toy/encoder", ENCODE, accept=MSGPACK))["items"][0]["dense"]["values"]
    )
    body = {**ENCODE, "params": {"output_dtype": dtype}}
    dense = decode(server.post("/v1/encode/toy/encoder", body, accept=MSGPACK))["items"][0]["dense"]
    assert (dense["dims"], dense["dtype"]) == (48, dtype)
    assert dense["values"][b"type"] == type_code
    assert np.array_equal(array(dense["values"]), values(exact))
    plain = server.post("/v1/encode/toy/encoder", body).json()["items"][0]["dense"]
    assert plain["values"] == values(exact).tolist()


def test_one_result_per_input_in_order(server: Server) -> None:
    texts = [f"{'rain ' * (i % 7)}number {i}" for i in range(50)]
    body = {"items": [{"id": str(i), "text": text} for i, text in enumerate(texts)]}
    items = server.post("/v1/encode/toy/encoder", body).json()["items"]
    assert [item["id"] for item in items] == [str(i) for i in range(50)]
    for i in (0, 6, 49):
        alone = server.post("/v1/encode/toy/encoder", {"items": [{"text": texts[i]}]}).json()["items"][0]
        assert items[i]["dense"]["values"] == pytest.approx(alone["dense"]["values"], abs=1e-5)


def test_encode_marks_and_reports_truncated_texts_and_unknown_options(server: Server) -> None:
    body = {"items": [{"text": "rain"}, {"text": LONG}], "params": {"options": {"nromalize": True}}}
    answer = server.post("/v1/encode/toy/encoder", body).json()
    assert ["truncated" in item for item in answer["items"]] == [False, True]
    assert "'nromalize'" in answer["warnings"][0] and "1 of 2 texts" in answer["warnings"][1]


def test_is_query_is_read_from_both_places(server: Server) -> None:
    for params in ({"is_query": True}, {"options": {"is_query": True}}):
        answer = server.post("/v1/encode/toy/encoder", {**ENCODE, "params": params})
        assert answer.status_code == 200 and "warnings" not in answer.json()


# ── metrics ──


def test_metrics_count_requests_and_tokens(server: Server) -> None:
    def state() -> list[float]:
        return [
            server.metric("sie_requests_total", route="score", model=BERT, status="200"),
            server.metric("sie_requests_total", route="score", model=BERT, status="400"),
            server.metric("sie_requests_total", route="score", model="unknown", status="404"),
            server.metric("sie_requests_total", route="encode", model="toy/encoder", status="200"),
            server.metric("sie_request_seconds_count", route="score", model=BERT),
            server.metric("sie_tokens_total", model=BERT),
        ]

    server.score("toy/bert", "rain", TEXTS)
    before = state()
    tokens = [server.score(BERT, "rain", TEXTS)["usage"]["input_tokens"] for _ in range(3)]
    server.post(f"/v1/score/{BERT}", b"{")
    server.post("/v1/score/no/such-model-at-all", BODY)
    server.post("/v1/encode/toy/encoder", ENCODE)
    grown = [after - was for after, was in zip(state(), before, strict=True)]
    assert grown == [3, 1, 1, 1, 4, sum(tokens)]
    assert server.metric("sie_model_loaded", model=BERT) == 1


def test_callers_cannot_grow_the_metrics(server: Server) -> None:
    names = [f"nobody/model-{i}" for i in range(5)]
    for name in names:
        server.post(f"/v1/score/{name}", BODY)
    text = server.get("/metrics").text
    known = {model["name"] for model in server.get("/v1/models").json()["models"]}
    assert set(re.findall(r'model="([^"]*)"', text)) <= known | {"unknown"}
    assert "# TYPE sie_requests_total counter" in text


# ── documentation ──


def find_refs(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in find_refs(value)]
    return [ref for value in node for ref in find_refs(value)] if isinstance(node, list) else []


def resolve(document: Any, ref: str) -> Any:
    assert ref.startswith("#/")
    for key in ref[2:].split("/"):
        document = document[key.replace("~1", "/").replace("~0", "~")]
    return document


KINDS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def problems(document: Any, schema: Any, value: Any, where: str = "$") -> list[str]:
    """Return violations of `schema` in `value`, for the keywords used here; an undescribed key is one."""
    if "$ref" in schema:
        return problems(document, resolve(document, schema["$ref"]), value, where)
    if "anyOf" in schema:
        tries = [problems(document, each, value, where) for each in schema["anyOf"]]
        return [] if [] in tries else min(tries, key=len)
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is not one of {schema['enum']}"]
    kind = schema.get("type")
    if kind and not (isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))):
        return [f"{where}: {value!r} is no {kind}"]
    if kind == "array":
        return [
            p
            for i, v in enumerate(value)
            for p in problems(document, schema.get("items", {}), v, f"{where}[{i}]")
        ]
    if kind != "object" or "properties" not in schema:
        return []
    found = [f"{where}: lacks {name}" for name in schema.get("required", []) if name not in value]
    for name, content in value.items():
        described = schema["properties"].get(name)
        found += (
            [f"{where}.{name}: not described"]
            if described is None
            else problems(document, described, content, f"{where}.{name}")
        )
    return found


@pytest.fixture(scope="module")
def openapi(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = server.get("/openapi.json").json()
    return document


def test_the_openapi_document_is_complete(openapi: dict[str, Any]) -> None:
    assert openapi["openapi"].startswith("3.1")
    assert openapi["info"]["title"] and openapi["info"]["version"] == __version__
    refs = find_refs(openapi)
    assert len(refs) > 20
    for ref in refs:
        assert isinstance(resolve(openapi, ref), dict), ref
    for path, methods in openapi["paths"].items():
        for operation in methods.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
            assert all(p["required"] for p in operation["parameters"] if p["in"] == "path")
            assert all(re.fullmatch(r"\d\d\d", status) for status in operation["responses"])
            assert all(response["description"] for response in operation["responses"].values())


def test_the_openapi_document_describes_responses(server: Server, openapi: dict[str, Any]) -> None:
    def check(method: str, route: str, answer: httpx.Response) -> None:
        described = openapi["paths"][route][method]["responses"][str(answer.status_code)]
        schema = described["content"][answer.headers["content-type"]]["schema"]
        assert problems(openapi, schema, decode(answer)) == []

    score, encode, models = "/v1/score/{model}", "/v1/encode/{model}", "/v1/models"
    long = {"query": {"text": LONG}, "items": [{"id": "x", "text": LONG}], "options": {"typo": 1}}
    check("post", score, server.post(f"/v1/score/{BERT}", BODY))
    check("post", score, server.post(f"/v1/score/{BERT}", long))
    check("post", score, server.post(f"/v1/score/{BERT}", long, accept=MSGPACK))
    check("post", score, server.post("/v1/score/no/model", BODY))
    check("post", score, server.post(f"/v1/score/{BERT}", b"["))
    check("post", score, server.post("/v1/score/toy/nan", BODY))
    check("post", encode, server.post("/v1/encode/toy/encoder", {**ENCODE, "params": {"options": {"x": 1}}}))
    both = {**ENCODE, "params": {"output_types": ["multivector", "dense"]}}
    check("post", encode, server.post(f"/v1/encode/{MINI}", both))
    check("get", models, server.get("/v1/models"))
    check("get", f"{models}/{{model}}", server.get(f"/v1/models/{MINI}"))
    check("get", f"{models}/{{model}}", server.get("/v1/models/nobody"))


def test_the_openapi_document_describes_requests(openapi: dict[str, Any]) -> None:
    def fields(name: str) -> set[str]:
        return set(openapi["components"]["schemas"][name]["properties"])

    assert fields("ScoreRequest") == {"query", "items", "instruction", "options"}
    assert {"text", "id", "metadata"} <= fields("Item")
    assert {"top_n", "max_seq_length", "profile", "instruction"} <= fields("Options")
    for kind in ("ScoreRequest", "EncodeRequest"):
        assert openapi["components"]["schemas"][kind]["properties"]["items"]["minItems"] == 1
    body = {"query": {"text": "x"}, "items": [{"text": "y"}, {"text": 5}]}
    found = problems(openapi, {"$ref": "#/components/schemas/ScoreRequest"}, body)
    assert found == ["$.items[1].text: 5 is no string"]  # the check itself finds a violation


class _Assets(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_the_documentation_page_needs_no_other_server(server: Server) -> None:
    page = server.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assets = _Assets()
    assets.feed(page.text)
    assert len(assets.found) >= 2
    for path in assets.found:
        assert path.startswith("docs/static/")  # relative
        answer = server.get(f"/{path}")
        assert answer.status_code == 200 and len(answer.content) > 1000
    assert "http://" not in page.text and "https://" not in page.text
    assert '"openapi.json"' in page.text
