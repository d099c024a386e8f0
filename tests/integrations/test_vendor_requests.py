"""Requests as the field's rerank clients send them: instructions, pairs, other routes, and loosely typed values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from sie_server.api.dialects import RERANK
from sie_server.catalog import EMBEDDED
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder
from support.checkpoints.listwise import make_listwise
from support.servers.inprocess import ask, asking, in_order, post

BERT, QWEN, MINI, LISTWISE = "toy/bert", "Qwen/Qwen3-Reranker-0.6B", "toy/mini", "toy/listwise"
QUERY, TEXTS = "machine learning", ["learning from data", "rain tomorrow", "the machine learns"]
INSTRUCTION = "Judge the weather only"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("vendors")
    models = {
        BERT: make_cross_encoder(root / "bert", "bert"),
        QWEN: make_decoder(root / "qwen", "qwen3"),
        MINI: EMBEDDED / "mini-en",
        LISTWISE: make_listwise(root / "listwise"),
    }
    with asking(models, document_cache_mb=0) as client:
        yield client


def body_for(path: str, texts: list[str] = TEXTS, **more: Any) -> dict[str, Any]:
    """Return a request in the form of the path's vendor."""
    query: Any = {"text": QUERY} if path.endswith("/ranking") else QUERY
    if "mixedbread" in path:
        return {"query": query, "input": texts, **more}
    if path.endswith("text-rerank"):
        return {"model": more.pop("model"), "input": {"query": query, "documents": texts}, "parameters": more}
    return {"query": query, "documents": texts, **more}


def scores_in(answer: Any) -> list[float]:
    """Return the scores of an answer in any dialect, in the order of the documents."""
    if "scores" in answer:
        return [hit["score"] for hit in answer["scores"]]
    answer = answer.get("output", answer) if isinstance(answer, dict) else answer
    lists = ("results", "data", "rankings")
    hits = answer if isinstance(answer, list) else next(answer[name] for name in lists if name in answer)
    names = ("relevance_score", "score", "logit")
    return [hit[next(n for n in names if n in hit)] for hit in sorted(hits, key=lambda hit: hit["index"])]


# ── instructions ──


@pytest.mark.parametrize("path", [path for path in RERANK if not path.endswith(("/predict", "/invoke"))])
def test_an_instruction_gives_the_scores_of_the_own_route(client: TestClient, path: str) -> None:
    normalize = "none" if path.endswith("/ranking") else "sigmoid"
    expected = in_order(ask(client, QWEN, QUERY, TEXTS, instruction=INSTRUCTION, normalize=normalize))
    assert expected != in_order(ask(client, QWEN, QUERY, TEXTS, normalize=normalize))
    spellings: list[dict[str, Any]] = [{"instruction": INSTRUCTION}, {"instruct": INSTRUCTION}]
    spellings.append({"chat_template_kwargs": {"instruction": INSTRUCTION}, "instruct": ""})
    for spelling in spellings:
        answer = client.post(path, json=body_for(path, model=QWEN, **spelling))
        assert answer.status_code == 200, answer.text
        assert scores_in(answer.json()) == pytest.approx(expected, abs=1e-6)
        assert "x-sie-warnings" not in answer.headers


@pytest.mark.parametrize("name", ["instruction", "instruct", "chat_template_kwargs"])
def test_a_model_without_instructions_refuses_one(client: TestClient, name: str) -> None:
    value: Any = {"instruction": INSTRUCTION} if name == "chat_template_kwargs" else INSTRUCTION
    own = ask(client, BERT, QUERY, TEXTS, 400, instruction=INSTRUCTION)["error"]["message"].split(" - at ")[0]
    for path in ("/v2/rerank", "/rerank", "/v1/rerank", "/v1/ranking"):
        answer = client.post(path, json=body_for(path, model=BERT, **{name: value}))
        assert answer.status_code == 400 and own in answer.text and f"$.{name}" in answer.text, answer.text
    for empty in (None, "", {"instruction": None}, {}):
        if isinstance(empty, dict) == (name == "chat_template_kwargs"):
            assert (
                client.post("/v1/rerank", json=body_for("", model=BERT, **{name: empty})).status_code == 200
            )


def test_instructions_that_differ_are_refused_and_other_variables_reported(client: TestClient) -> None:
    two = {"instruction": "a", "chat_template_kwargs": {"instruction": "b"}}
    message = client.post("/rerank", json=body_for("", model=QWEN, **two)).text
    assert "differs" in message and "$.chat_template_kwargs.instruction" in message
    both = {"instruction": "a", "instruct": "b"}
    assert "mean the same" in client.post("/v2/rerank", json=body_for("", model=QWEN, **both)).text
    wrong = {"chat_template_kwargs": {"instruction": 3}}
    assert "$.chat_template_kwargs.instruction" in client.post("/rerank", json=body_for("", **wrong)).text
    other = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = client.post("/rerank", json=body_for("", model=QWEN, **other))
    assert "chat_template_kwargs.enable_thinking" in answer.headers["x-sie-warnings"]


# ── pairs ──

QUERIES = ["machine learning", "rain", "stars burn", "rain"]
DOCUMENTS = ["learning from data", "rain tomorrow", "stars burn hydrogen", "the rain falls"]
SPELLINGS = [("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2"), ("queries", "items")]


@pytest.mark.parametrize("model", [BERT, QWEN, MINI, LISTWISE])
@pytest.mark.parametrize(("first", "second"), SPELLINGS)
def test_pairs_are_scored_one_by_one(client: TestClient, model: str, first: str, second: str) -> None:
    normalize = {} if model in (MINI, LISTWISE) else {"normalize": "sigmoid"}
    answer = client.post("/v1/score", json={"model": model, first: QUERIES, second: DOCUMENTS})
    body = answer.json()
    assert answer.status_code == 200 and [hit["index"] for hit in body["data"]] == [0, 1, 2, 3], body
    alone = [
        ask(client, model, *pair, **normalize) for pair in zip(QUERIES, ([d] for d in DOCUMENTS), strict=True)
    ]
    expected = [one["scores"][0]["score"] for one in alone]
    assert [hit["score"] for hit in body["data"]] == pytest.approx(expected, abs=1e-5)
    if model == BERT:  # other models read an equal query once
        assert body["usage"]["total_tokens"] == sum(one["usage"]["input_tokens"] for one in alone)


def test_pairs_of_equal_queries_are_scored_apart(client: TestClient) -> None:
    answer = post(client, "/score", {"model": LISTWISE, "queries": ["rain"] * 4, "documents": DOCUMENTS})
    alone = [ask(client, LISTWISE, "rain", [document])["scores"][0]["score"] for document in DOCUMENTS]
    together = in_order(ask(client, LISTWISE, "rain", DOCUMENTS))
    assert scores_in(answer) == pytest.approx(alone, abs=1e-5) != pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("query", ["rain", ["rain"]])
def test_one_query_is_scored_with_every_document(client: TestClient, query: Any) -> None:
    answer = post(client, "/score", {"model": BERT, "text_1": query, "text_2": DOCUMENTS})
    expected = in_order(ask(client, BERT, "rain", DOCUMENTS, normalize="sigmoid"))
    assert scores_in(answer) == pytest.approx(expected, abs=1e-6)
    one = post(client, "/score", {"model": BERT, "text_1": query, "text_2": DOCUMENTS[0]})
    assert scores_in(one) == pytest.approx(expected[:1], abs=1e-6)


@pytest.mark.parametrize(
    ("queries", "documents"), [(["a", "b"], ["c"] * 3), (["a"] * 3, ["b"] * 2), (["a"] * 2, "b")]
)
def test_lists_of_different_length_are_refused(client: TestClient, queries: Any, documents: Any) -> None:
    answer = client.post("/score", json={"model": BERT, "data_1": queries, "data_2": documents})
    count = 1 if isinstance(documents, str) else len(documents)
    assert answer.status_code == 400 and "$.data_1" in answer.text
    assert f"{len(queries)} queries for {count} documents" in answer.text


def test_pairs_share_passes_and_one_place_in_the_queue(client: TestClient) -> None:
    def passes() -> float:
        found = re.search(r"^sie_batch_tokens_count\S* (\S+)", client.get("/metrics").text, re.MULTILINE)
        assert found
        return float(found[1])

    before = passes()
    queries = [f"query number {i}" for i in range(100)]
    post(client, "/score", {"model": BERT, "queries": queries, "documents": ["rain"] * 100})
    assert passes() - before <= 3


def test_truncated_pairs_are_reported_by_their_index(client: TestClient) -> None:
    body = {"model": BERT, "queries": ["a", "b"], "documents": ["short", "rain falls " * 300]}
    [warning] = json.loads(client.post("/score", json=body).headers["x-sie-warnings"])
    assert warning.startswith("item 1: ") and "1 of 1 texts" in warning


def test_other_limits_of_pairs(client: TestClient) -> None:
    pairs = {"model": BERT, "queries": ["a", "b"], "documents": ["c", "d"]}
    for more, words in (({"top_n": 1}, "$.top_n"), ({"label_token_ids": [1]}, "$.label_token_ids")):
        answer = client.post("/score", json={**pairs, **more})
        assert answer.status_code == 400 and words in answer.text
    many = [str(i) for i in range(10_001)]
    answer = client.post("/score", json={"model": BERT, "queries": many, "documents": many})
    assert answer.status_code == 400 and "10,000 different queries" in answer.text


@pytest.mark.parametrize(
    "content",
    [
        {"content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        [{"type": "text", "text": "a"}],
        [{"content": [{"type": "video_url", "video_url": {"url": "x"}}]}],
    ],
)
def test_other_media_are_refused_by_name(client: TestClient, content: Any) -> None:
    answer = client.post("/score", json={"model": BERT, "queries": "a", "documents": content})
    assert answer.status_code == 400 and "reads text" in answer.text and "$.documents" in answer.text
    documents = content if isinstance(content, list) else [content]
    answer = client.post("/rerank", json={"model": BERT, "query": "a", "documents": documents})
    assert answer.status_code == 400 or documents == [{"type": "text", "text": "a"}]


# ── loosely typed values ──


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("return_documents", "true"),
        ("return_documents", "False"),
        ("return_documents", 1),
        ("top_n", "2"),
        ("top_n", 2.0),
        ("max_tokens_per_doc", "64"),
    ],
)
def test_strings_and_floats_that_mean_a_boolean_or_a_number(
    client: TestClient, name: str, value: Any
) -> None:
    for path in (
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/voyage/v1/rerank",
        "/api/v1/services/rerank/text-rerank/text-rerank",
    ):
        if name == "max_tokens_per_doc" and path not in ("/v1/rerank", "/v2/rerank", "/rerank"):
            continue
        answer = client.post(path, json=body_for(path, model=BERT, **{name: value}))
        assert answer.status_code == 200, answer.text
        hits = next(v for v in (answer.json().get("output") or answer.json()).values() if isinstance(v, list))
        assert len(hits) == (2 if name == "top_n" else 3)
        if path != "/v2/rerank" and name == "return_documents":
            assert all(("document" in hit) == (value not in ("False",)) for hit in hits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("return_documents", "perhaps"),
        ("return_documents", 2),
        ("top_n", "many"),
        ("top_n", 1.5),
        ("top_n", "-1"),
        ("top_n", "0"),
    ],
)
def test_other_strings_and_numbers_are_refused_by_name(client: TestClient, name: str, value: Any) -> None:
    answer = client.post("/v1/rerank", json=body_for("", model=BERT, **{name: value}))
    assert answer.status_code == 400 and f"$.{name}" in answer.text


def test_the_requests_of_ragflow_and_xinference(client: TestClient) -> None:
    ragflow = {
        "model": BERT,
        "query": "x",
        "return_documents": "true",
        "return_len": "true",
        "documents": ["a"],
    }
    xinference = {"model": BERT, "documents": ["a"], "query": "x", "top_n": None, "max_chunks_per_doc": None}
    xinference |= {"return_documents": True, "return_len": True, "kwargs": "{}"}
    for body in (ragflow, xinference):
        answer = client.post("/v1/rerank", json=body)
        assert answer.status_code == 200 and "x-sie-warnings" not in answer.headers
        tokens = answer.json()["meta"]["tokens"]
        assert tokens["input_tokens"] > 0 and tokens["output_tokens"] == 0
        assert answer.json()["results"][0]["document"] == {"text": "a"}
        assert "detail" in client.post("/v1/rerank", json={**body, "documents": []}).json()


# ── other vendors' routes ──


def test_vllms_fields_are_read_on_the_path_of_several_dialects(client: TestClient) -> None:
    raw = in_order(ask(client, BERT, QUERY, TEXTS, normalize="none"))
    answer = client.post("/v1/rerank", json=body_for("", model=BERT, use_activation="false"))
    assert scores_in(answer.json()) == pytest.approx(raw, abs=1e-6) and "x-sie-warnings" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/reranking", "/reranking"])
def test_mixedbread_and_llama_cpp_share_a_path(client: TestClient, path: str) -> None:
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    theirs = post(
        client, path, {"model": BERT, "query": QUERY, "input": TEXTS, "top_k": 2, "return_input": True}
    )
    assert set(theirs) == {"data", "model", "usage", "object", "top_k", "return_input"}
    assert theirs["top_k"] == len(theirs["data"]) == 2 and theirs["return_input"] is True
    assert all(
        hit["input"] == TEXTS[hit["index"]] and hit["object"] == "text_document" for hit in theirs["data"]
    )
    assert [hit["score"] for hit in theirs["data"]] == pytest.approx(sorted(expected)[:0:-1], abs=1e-6)
    llama = post(client, path, {"model": BERT, "query": QUERY, "documents": TEXTS, "top_n": 3})
    assert scores_in(llama) == pytest.approx(expected, abs=1e-6) and "results" in llama


def test_mixedbreads_objects_and_refusals(client: TestClient) -> None:
    documents = [{"title": text, "year": i} for i, text in enumerate(TEXTS)]
    body = {"model": BERT, "query": QUERY, "input": documents, "rank_fields": ["title"], "return_input": True}
    answer = post(client, "/v1/reranking", body)
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    assert scores_in(answer) == pytest.approx(expected, abs=1e-6)
    assert all(hit["input"] == documents[hit["index"]] for hit in answer["data"])
    del body["rank_fields"]
    assert "$.input[0].text" in client.post("/v1/reranking", json=body).text
    rewrite = {"model": BERT, "query": QUERY, "input": TEXTS, "rewrite_query": True}
    refused = client.post("/v1/reranking", json=rewrite)
    assert refused.status_code == 400 and "$.rewrite_query" in refused.json()["message"]
    assert post(client, "/v1/reranking", {**rewrite, "rewrite_query": False})["return_input"] is False


def test_weaviate_is_recognised_by_its_body(client: TestClient) -> None:
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    bare = {"query": QUERY, "documents": TEXTS}
    for path, body in (
        ("/rerank", {**bare, "property": ""}),
        ("/weaviate/rerank", {**bare, "property": ""}),
        ("/weaviate/rerank", bare),
        ("/rerank", bare),
    ):
        answer = post(client, path, body)
        assert answer["query"] == QUERY and [hit["document"] for hit in answer["scores"]] == TEXTS
        assert [hit["score"] for hit in answer["scores"]] == pytest.approx(expected, abs=1e-6)
        assert ("results" in answer) == ("property" not in body and path == "/rerank")
    assert "scores" not in post(client, "/rerank", {**bare, "model": BERT})
    error = client.post("/rerank", json={**bare, "documents": [], "property": ""})
    assert isinstance(error.json()["error"], str)
    assert "1.21" in client.post("/weaviate/rerank", json={"query": "a", "property": "b"}).json()["error"]


def test_dashscope(client: TestClient) -> None:
    path = "/api/v1/services/rerank/text-rerank/text-rerank"
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    answer = post(client, path, body_for(path, model=BERT, top_n=2, return_documents=True))
    assert set(answer) == {"output", "usage", "request_id"} and answer["usage"]["total_tokens"] > 0
    hits = answer["output"]["results"]
    assert [hit["relevance_score"] for hit in hits] == pytest.approx(sorted(expected)[:0:-1], abs=1e-6)
    assert all(hit["document"] == {"text": TEXTS[hit["index"]]} for hit in hits)
    for body, place in (
        (body_for(path, [], model=BERT), "$.input.documents"),
        (body_for(path, model=BERT, top_n="x"), "$.parameters.top_n"),
        ({**body_for(path, model=BERT), "query": "twice"}, "$.input.query"),
        ({"model": BERT, "input": "x"}, "$.input"),
        (body_for(path, model=BERT, instruct="x"), "$.parameters.instruct"),
    ):
        refused = client.post(path, json=body)
        assert refused.status_code == 400 and place in refused.json()["message"], refused.text
    flat = post(client, "/compatible-api/v1/reranks", body_for("", model=BERT, top_n=2))
    assert flat["object"] == "list" and len(flat["results"]) == 2


def test_pinecone_and_zeroentropy(client: TestClient) -> None:
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    objects = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    body = {"model": BERT, "query": QUERY, "documents": objects, "parameters": {"truncate": "END"}}
    answer = post(client, "/pinecone/rerank", body)
    assert scores_in(answer) == pytest.approx(expected, abs=1e-6) and answer["usage"] == {"rerank_units": 1}
    assert all(hit["document"] == objects[hit["index"]] for hit in answer["data"])
    answer = post(client, "/pinecone/rerank", {**body, "return_documents": False})
    assert not any("document" in hit for hit in answer["data"])
    long = {**body, "documents": ["rain " * 500], "parameters": {"truncate": "NONE"}}
    assert "`parameters.truncate`" in client.post("/pinecone/rerank", json=long).text
    answer = post(client, "/v1/models/rerank", body_for("", model=BERT, latency=None, top_n=1))
    assert answer["total_tokens"] > 0 and answer["e2e_latency"] >= answer["inference_latency"] > 0


@pytest.mark.parametrize("model", ["toy%2Fbert", "toy/bert"])
def test_bedrock_has_the_model_in_its_path(client: TestClient, model: str) -> None:
    expected = in_order(ask(client, BERT, QUERY, TEXTS, normalize="sigmoid"))
    path, body = f"/model/{model}/invoke", body_for("", api_version=2)
    answer = post(client, path, body)
    assert set(answer) == {"results"} and scores_in(answer) == pytest.approx(expected, abs=1e-6)
    cut = post(client, path, {**body, "top_n": 1, "return_documents": True})["results"]
    assert [hit["document"]["text"] for hit in cut] == [TEXTS[expected.index(max(expected))]]
    assert "$.api_version" in client.post(path, json={**body, "api_version": 3}).json()["message"]
    assert "$.model" in client.post(path, json={**body, "model": BERT}).json()["message"]
    unknown = client.post("/model/cohere.rerank-v3-5%3A0/invoke", json=body)
    assert unknown.status_code == 404 and "is not known" in unknown.json()["message"]
    assert f'model="{BERT}",route="model/{{model}}/invoke",status="200"' in client.get("/metrics").text


def test_contextuals_metadata_is_reported(client: TestClient) -> None:
    body = body_for("", model=BERT, metadata=["", "", ""])
    assert "x-sie-warnings" not in client.post("/v1/rerank", json=body).headers
    answer = client.post("/v1/rerank", json={**body, "metadata": ["2024", "", ""]})
    assert "`metadata` was ignored" in answer.headers["x-sie-warnings"]
    assert "1 texts for 3" in client.post("/v1/rerank", json={**body, "metadata": ["2024"]}).text
