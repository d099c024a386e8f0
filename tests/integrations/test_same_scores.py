"""Equal requests through every dialect yield the order and scores of the Python client, with the documented keys."""

from __future__ import annotations

from typing import Any

import pytest

from support.requests.dialects import SPOKEN, nim, plain, score
from support.requests.questions import LOGIT, MODELS, PROBABILITY, QUERY, TEXTS, expect, probabilities
from support.servers.processes import Server


def options(model: str, raw: bool) -> dict[str, str]:
    return {"normalize": "none"} if raw else probabilities(model)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SPOKEN)
def test_every_dialect_returns_the_clients_scores(server: Server, name: str, model: str) -> None:
    spoken = SPOKEN[name]
    expected = expect(server, model, **options(model, spoken.raw))
    hits = spoken.found(spoken.ask(server, model))
    expected.check(hits)
    assert len(hits) == len(TEXTS)


@pytest.mark.parametrize("model", [PROBABILITY, LOGIT])
def test_raw_scores_are_logits(server: Server, model: str) -> None:
    expected = expect(server, model, normalize="none")
    for name, body in (
        ("tei", {"raw_scores": True}),
        ("infinity", {"raw_scores": True}),
        ("vllm score", {"use_activation": False}),
        ("vllm rerank", {"use_activation": False}),
    ):
        spoken = SPOKEN[name]
        expected.check(spoken.found(spoken.ask(server, model, **body)))


# ── exactly these keys ──

USAGE = ["prompt_tokens", "total_tokens"]
KEYS = {
    "cohere v2": ["id", "results", "meta"],
    "cohere v1": ["id", "results", "meta"],
    "jina": ["object", "model", "usage", "results", "id", "meta"],
    "voyage": ["object", "data", "model", "usage"],
    "infinity": ["object", "results", "model", "usage", "id"],
    "vllm rerank": ["id", "model", "usage", "results"],
    "nim": ["rankings", "usage"],
    "vllm score": ["id", "object", "created", "model", "data", "usage"],
}
HIT_KEYS = {"tei": ["index", "score"], "nim": ["index", "logit"], "vllm score": ["index", "object", "score"]}
OBJECT = ("cohere v2", "cohere v1", "jina", "vllm rerank")  # documents as {text}


@pytest.mark.parametrize("name", [*KEYS, "tei"])
def test_the_keys_and_their_order(server: Server, name: str) -> None:
    spoken = SPOKEN[name]
    answer = spoken.ask(server, PROBABILITY)
    if name in KEYS:
        assert list(answer) == KEYS[name]
    for hit in spoken.hits(answer):
        assert list(hit) == HIT_KEYS.get(name, ["index", "relevance_score"])


@pytest.mark.parametrize("name", [*OBJECT, "voyage", "infinity", "tei"])
def test_documents_are_returned_if_requested(server: Server, name: str) -> None:
    spoken = SPOKEN[name]
    for spelling in ("return_documents", "return_text"):
        for hit in spoken.hits(spoken.ask(server, PROBABILITY, **{spelling: True})):
            text = TEXTS[hit["index"]]
            if name == "tei":
                assert hit["text"] == text
            else:
                assert hit["document"] == ({"text": text} if name in OBJECT else text)
        assert not any(
            "document" in hit or "text" in hit for hit in spoken.hits(spoken.ask(server, PROBABILITY))
        )


def test_token_counts_equal_the_native_route(server: Server) -> None:
    tokens = server.score(PROBABILITY, QUERY, TEXTS)["usage"]["input_tokens"]
    for name in ("jina", "infinity", "vllm rerank", "nim", "vllm score"):
        assert SPOKEN[name].ask(server, PROBABILITY)["usage"] == dict.fromkeys(USAGE, tokens)
    assert SPOKEN["voyage"].ask(server, PROBABILITY)["usage"] == {"total_tokens": tokens}
    for name in ("cohere v2", "cohere v1"):
        assert SPOKEN[name].ask(server, PROBABILITY)["meta"]["tokens"] == {
            "input_tokens": tokens,
            "output_tokens": 0,
        }


# ── both spellings of everything ──


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/voyage/v1/rerank", "/v1/ranking"])
@pytest.mark.parametrize("documents", ["documents", "texts", "passages"])
@pytest.mark.parametrize("many", ["top_n", "top_k"])
def test_both_spellings(server: Server, path: str, documents: str, many: str) -> None:
    sent: list[Any] = [*TEXTS[:2], *({"text": text} for text in TEXTS[2:])]
    query: Any = {"text": QUERY} if path == "/v1/ranking" else QUERY
    answer = server.post(path, {"model": PROBABILITY, "query": query, documents: sent, many: 2})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    hits = body if isinstance(body, list) else body.get("results") or body.get("data") or body["rankings"]
    assert [hit["index"] for hit in hits] == expect(server, PROBABILITY).order[:2]
    assert "x-sie-warnings" not in answer.headers


def test_a_body_without_a_model_uses_the_first_one(server: Server) -> None:
    for path, body in (
        ("/rerank", {"query": QUERY, "texts": TEXTS}),
        ("/v1/ranking", nim(QUERY, TEXTS)),
        ("/score", score(QUERY, TEXTS)),
        ("/v1/rerank", plain(QUERY, TEXTS)),
    ):
        assert server.post(path, body).json() is not None
        with_model = server.post(path, {**body, "model": PROBABILITY})
        assert _scores(server.post(path, body).json()) == pytest.approx(_scores(with_model.json()), abs=1e-6)


def _scores(answer: Any) -> list[float]:
    hits = answer if isinstance(answer, list) else next(v for v in answer.values() if isinstance(v, list))
    return [value for hit in hits for value in hit.values() if isinstance(value, float)]


def test_the_info_route_of_tei(server: Server) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == PROBABILITY and info["max_input_length"] == 128
    assert "reranker" in info["model_type"] and info["auto_truncate"] is True


# no model of this server has sparse vectors, and hidden states are never returned
REFUSED = {"/embed_sparse": "'sparse'", "/embed_all": "/v1/encode"}


def test_an_openapi_path_for_every_dialect(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/info", "/embed", *(spoken.path for spoken in SPOKEN.values())} <= set(paths)
    wrong: list[tuple[str, str]] = []
    for path, methods in paths.items():
        content = (
            methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        )
        for example in content.get("examples", {}).values():
            answer = server.post(path.replace("{model}", PROBABILITY), example["value"])
            reason = REFUSED.get(path.removeprefix("/tei"), "")
            fits = answer.status_code == (400 if reason else 200) and reason in answer.text
            if not fits or "x-sie-warnings" in answer.headers:
                wrong.append((path, answer.text[:300]))
    assert not wrong
