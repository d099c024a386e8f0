"""Late interaction over HTTP: scores equal the client's MaxSim, vectors replace texts, /metrics reports the cache."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from sie_sdk.codec import decode_body, encode_body
from sie_sdk.scoring import maxsim, maxsim_batch
from sie_server.api.app import create_app
from sie_server.config import ServerConfig
from sie_server.serving.service import Service
from support.checkpoints.colbert import make_pylate, make_stanford
from support.checkpoints.cross_encoders import make_cross_encoder, random_text

MODELS = ["pylate", "stanford"]
RNG = random.Random(6)
DOCUMENTS = ["", "- ? -"] + [random_text(RNG, n) for n in (1, 4, 9, 20, 35, 80)]
QUERY = "rain falls tomorrow"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("models")
    make_pylate(root / "pylate", "bert")
    make_stanford(root / "stanford", "xlm-roberta", {"dim": 16, "query_maxlen": 20, "doc_maxlen": 40})
    make_cross_encoder(root / "cross", "bert")
    yield from serving(root)


def serving(root: Path, **config: Any) -> Iterator[TestClient]:
    settings = ServerConfig(models_dir=str(root), device="cpu", dtype="float32", batch_tokens=2048, **config)
    with TestClient(create_app(settings, Service)) as client:
        yield client


def post(client: TestClient, path: str, body: Any, status: int = 200, media: str = "msgpack") -> Any:
    kind = f"application/{media}"
    headers = {"Content-Type": kind, "Accept": kind}
    answer = client.post(f"/v1/{path}", content=encode_body(body, kind), headers=headers)
    assert answer.status_code == status, answer.text[:500]
    return decode_body(answer.content, kind) if status == 200 else answer.json()["error"]["message"]


def scores(client: TestClient, model: str, query: Any, items: list[Any], **options: Any) -> list[float]:
    body = {"query": query, "items": items, "options": options}
    answer = post(client, f"score/{model}", body)
    entries = sorted(answer["scores"], key=lambda entry: int(entry["item_id"].removeprefix("item-")))
    return [entry["score"] for entry in entries]


def vectors(client: TestClient, model: str, texts: list[str], params: dict[str, Any]) -> list[Any]:
    params = {"output_types": ["multivector"]} | params
    answer = post(client, f"encode/{model}", {"items": [{"text": t} for t in texts], "params": params})
    return [item["multivector"]["values"] for item in answer["items"]]


@pytest.mark.parametrize("model", MODELS)
def test_a_query_that_is_too_long_can_be_refused_with_vectors(client: TestClient, model: str) -> None:
    items = [{"multivector": found} for found in vectors(client, model, DOCUMENTS[2:4], {})]
    body = {"query": {"text": QUERY}, "items": items, "options": {"long_document": "refuse"}}
    assert len(post(client, f"score/{model}", body)["scores"]) == 2
    body["query"] = {"text": "rain " * 60}
    assert "$.query.text" in post(client, f"score/{model}", body, 400)
    tokens = {"long_document": None, "max_document_tokens": 2}
    assert "$.options.max_document_tokens" in post(client, f"score/{model}", body | {"options": tokens}, 400)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("as_query", [{"is_query": True}, {"options": {"is_query": True}}])
def test_scores_equal_the_clients_maxsim(client: TestClient, model: str, as_query: dict[str, Any]) -> None:
    [query] = vectors(client, model, [QUERY], as_query)
    documents = vectors(client, model, DOCUMENTS, {})
    assert len(query) == {"pylate": 16, "stanford": 20}[model]
    ours = scores(client, model, {"text": QUERY}, [{"text": d} for d in DOCUMENTS])
    np.testing.assert_allclose(ours, maxsim_batch(query, documents), atol=1e-5)
    assert ours[3] == pytest.approx(maxsim(query, documents[3]), abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_vectors_in_place_of_text_give_the_same_scores(client: TestClient, model: str) -> None:
    [query] = vectors(client, model, [QUERY], {"is_query": True})
    documents = vectors(client, model, DOCUMENTS, {})
    expected = scores(client, model, {"text": QUERY}, [{"text": d} for d in DOCUMENTS])
    items = [{"multivector": d} for d in documents]
    for q in ({"text": QUERY}, {"multivector": query}):
        np.testing.assert_allclose(scores(client, model, q, items), expected, atol=1e-5)
        half = [{"multivector": d.astype(np.float16)} for d in documents]
        np.testing.assert_allclose(scores(client, model, q, half), expected, atol=2e-2)
    texts = [{"text": d} for d in DOCUMENTS]
    np.testing.assert_allclose(scores(client, model, {"multivector": query}, texts), expected, atol=1e-5)
    lists = {"query": {"multivector": query.tolist()}, "items": [{"multivector": documents[4].tolist()}]}
    answer = post(client, f"score/{model}", lists, media="json")
    assert answer["scores"][0]["score"] == pytest.approx(expected[4], abs=1e-5)
    assert answer["usage"] == {"input_tokens": 0}


def test_truncated_texts_are_reported(client: TestClient) -> None:
    body = {"query": {"text": "rain " * 50}, "items": [{"text": DOCUMENTS[-1]}, {"text": "rain"}]}
    for _ in range(2):  # the second answer comes from the cache
        answer = post(client, "score/stanford", body)
        cut = {entry["item_id"]: entry.get("truncated") for entry in answer["scores"]}
        assert cut == {"item-0": True, "item-1": None}
        assert "20 tokens" in answer["warnings"][0]
        assert "1 of 2" in answer["warnings"][1]


@pytest.mark.parametrize("model", MODELS)
def test_narrower_vectors_are_the_first_dimensions_at_length_one(client: TestClient, model: str) -> None:
    whole = vectors(client, model, DOCUMENTS, {})
    narrow = vectors(client, model, DOCUMENTS, {"options": {"dimensions": 12}})
    for one, two in zip(whole, narrow, strict=True):
        expected = one[:, :12] / np.linalg.norm(one[:, :12], axis=1, keepdims=True)
        np.testing.assert_allclose(two, expected, atol=1e-6)


GOOD = np.ones((3, 24), np.float32)
SHAPED: dict[bytes, Any] = {b"nd": True, b"type": "<f4", b"kind": b"", b"data": b""}


@pytest.mark.parametrize(
    ("query", "items", "message"),
    [
        (
            {"text": "a"},
            [{"multivector": GOOD}] * 3 + [{"multivector": GOOD[:, :20]}],
            r"20 wide.*24 wide.*\[3\]",
        ),
        ({"multivector": GOOD[:, :5]}, [{"text": "a"}], r"5 wide.*`\$\.query\.multivector`"),
        ({"text": "a"}, [{"multivector": GOOD.astype(np.int8)}], r"int8.*`\$\.items\[0\]\.multivector`"),
        ({"text": "a"}, [{"multivector": GOOD[0]}], r"shape \[24\]"),
        ({"text": "a"}, [{"multivector": GOOD[:0]}], "at least one token"),
        ({"text": "a"}, [{"multivector": GOOD * np.inf}], "finite"),
        ({"text": "a"}, [{"multivector": GOOD.astype(np.float64) * 1e300}], "finite"),
        ({"text": "a"}, [{"multivector": [[1, "x"]]}], "numbers"),
        ({"text": "a"}, [{"multivector": "x"}], "expected an array"),
        ({"text": "a"}, [{"text": "b"}, {"multivector": GOOD}], r"all of one kind.*items\[1\]\.multivector"),
        ({"text": "a"}, [{"multivector": GOOD}, {"multivector": GOOD}, {"text": "b"}], r"items\[2\]\.text"),
        ({"text": "a"}, [{"multivector": GOOD, "text": "b"}], r"not both.*items\[0\]"),
        ({"multivector": GOOD, "text": "a"}, [{"text": "b"}], r"not both.*\$\.query"),
        ({"multivector": np.ones((97, 24), "f4")}, [{"text": "b"}], r"at most 96.*\$\.query"),
        ({}, [{"multivector": GOOD}], r"\$\.query\.text"),
        ({"text": "a"}, [{"multivector": SHAPED | {b"shape": [0, 2**63]}}], r"too large.*\[0\]\.multivector"),
        ({"multivector": SHAPED | {b"shape": [2**63, 0]}}, [{"text": "a"}], r"too large.*\$\.query"),
        ({"text": "a"}, [{"multivector": SHAPED | {b"shape": [0] + [2**31] * 7}}], "too large"),
        ({"text": "a"}, [{"multivector": [SHAPED | {b"shape": [0, 2**40]}] * 2}], "too large"),
        ({"text": "a"}, [{"multivector": SHAPED | {b"nd": False, b"shape": None}}], "unknown keys shape"),
        ({"text": "a"}, [{"multivector": [[1] * 1000] * 1000}], r"1,000,000 values.*\[0\]\.multivector"),
        (
            {"text": "a"},
            [{"multivector": [[1.0] * 24] * 10_000}] * 5,
            r"1,000,000 values.*\[3\]\.multivector",
        ),
        ({"text": "a"}, [{"multivector": [[[[1.0]]]]}], "shape"),
        ({"text": "a"}, [{"multivector": {"nd": True}}], "nd"),
    ],
)
def test_bad_vectors_are_refused(client: TestClient, query: Any, items: list[Any], message: str) -> None:
    said = post(client, "score/pylate", {"query": query, "items": items}, status=400)
    assert re.search(message, said), said


@pytest.mark.parametrize("number", ["1e400", "9" * 400, "true", '"1"', "null", "[1]"])
def test_bad_numbers_in_json_are_refused(client: TestClient, number: str) -> None:
    row = ", ".join([number] * 24)
    body = f'{{"query": {{"text": "a"}}, "items": [{{"text": null, "multivector": [[{row}]]}}]}}'
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    answer = client.post("/v1/score/pylate", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "$.items[0].multivector" in answer.json()["error"]["message"]


def test_models_of_another_kind_take_no_vectors(client: TestClient) -> None:
    for model in ("cross", "sie/mini-en"):
        for query, item in (({"text": "a"}, {"multivector": GOOD}), ({"multivector": GOOD}, {"text": "a"})):
            said = post(client, f"score/{model}", {"query": query, "items": [item]}, status=400)
            assert "reads text" in said
    said = post(
        client,
        "encode/pylate",
        {"items": [{"text": "a"}], "params": {"output_types": ["dense"]}},
        status=400,
    )
    assert "it has score, multivector" in said


def counters(client: TestClient) -> dict[str, float]:
    found = re.findall(r"^sie_document_cache_(\w+) (\S+)$", client.get("/metrics").text, re.MULTILINE)
    counted = {name: float(value) for name, value in found if not name.endswith("_created")}
    tokens = re.findall(r"^sie_tokens_total\{.*?\} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return counted | {"tokens": sum(map(float, tokens))} if counted else {}


@pytest.mark.parametrize("model", [*MODELS, "sie/mini-en"])
def test_a_hit_skips_tokenisation_and_forward_pass(client: TestClient, model: str) -> None:
    documents = [{"text": f"{model} {text}"} for text in DOCUMENTS]
    body = {"query": {"text": QUERY}, "items": documents}
    before = counters(client)
    first = post(client, f"score/{model}", body)
    between = counters(client)
    second = post(client, f"score/{model}", body)
    after = counters(client)
    assert (between["misses_total"] - before["misses_total"], between["hits_total"]) == (
        8,
        before["hits_total"],
    )
    assert (after["hits_total"] - between["hits_total"], after["misses_total"]) == (
        8,
        between["misses_total"],
    )
    assert between["bytes"] == after["bytes"] > before["bytes"]
    assert after["evictions_total"] == 0
    # only the query went through the model, but the caller receives the same answer
    assert after["tokens"] - between["tokens"] < (between["tokens"] - before["tokens"]) / 3
    assert second["usage"] == first["usage"]
    assert [e["item_id"] for e in first["scores"]] == [e["item_id"] for e in second["scores"]]
    ours, theirs = ([e["score"] for e in answer["scores"]] for answer in (second, first))
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("model", [*MODELS, "sie/mini-en"])
def test_windows_are_cached_by_their_content(client: TestClient, model: str) -> None:
    """Unchanged windows of an edited document are also found."""
    long = random_text(random.Random(12), 200)
    options = {"long_document": "chunk", "chunk_overlap": 0, "max_seq_length": 32}

    def ask(texts: list[str]) -> Any:
        items = [{"text": text} for text in texts]
        return post(client, f"score/{model}", {"query": {"text": QUERY}, "items": items, "options": options})

    start = counters(client)
    first = ask([long, "rain"])
    between = counters(client)
    second = ask([long, "rain"])
    after = counters(client)
    windows = between["misses_total"] - start["misses_total"]
    assert windows > 6
    assert after["hits_total"] - between["hits_total"] == windows
    assert after["tokens"] - between["tokens"] < (between["tokens"] - start["tokens"]) / 3
    assert second["usage"] == first["usage"]
    for one, two in zip(first["scores"], second["scores"], strict=True):
        assert one.pop("score") == pytest.approx(two.pop("score"), abs=1e-5)
        assert one == two
    ask([f"{long} and more"])
    changed = counters(client)
    assert changed["hits_total"] - after["hits_total"] >= windows - 2
    # inspect shows every window, cached or not
    body = {"query": {"text": QUERY}, "items": [{"text": long}, {"text": "rain"}], "options": options}
    assert len(post(client, f"inspect/{model}", body)["items"]) == windows
    assert counters(client) == changed


def test_zero_budget_means_no_cache(tmp_path: Path) -> None:
    make_pylate(tmp_path / "pylate", "bert")
    for client in serving(tmp_path, document_cache_mb=0):
        twice = [scores(client, "pylate", {"text": QUERY}, [{"text": "rain"}]) for _ in range(2)]
        assert twice[0] == twice[1]
        assert counters(client) == {}
