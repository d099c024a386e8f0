"""The same questions through every dialect: the order and the scores of the Python client, and exactly these keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from questions import LOGIT, MODELS, PROBABILITY, QUERY, TEXTS, expect, probabilities, random_questions
from servers import Server

Hits = list[tuple[int, float]]


@dataclass(frozen=True)
class Spoken:
    """How a dialect asks, and where its answer has the hits."""

    path: str
    body: Callable[[str, list[str]], dict[str, Any]]
    hits: Callable[[Any], list[dict[str, Any]]]
    score: str = "relevance_score"
    raw: bool = False
    ordered: bool = True

    def ask(
        self, server: Server, model: str, query: str = QUERY, texts: list[str] = TEXTS, **more: Any
    ) -> Any:
        answer = server.post(self.path, {"model": model, **self.body(query, texts), **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def found(self, answer: Any) -> Hits:
        return [(hit["index"], hit[self.score]) for hit in self.hits(answer)]


def plain(query: str, texts: list[str]) -> dict[str, Any]:
    return {"query": query, "documents": texts}


def tei(query: str, texts: list[str]) -> dict[str, Any]:
    return {"query": query, "texts": texts}


def nim(query: str, texts: list[str]) -> dict[str, Any]:
    return {"query": {"text": query}, "passages": [{"text": text} for text in texts], "truncate": "END"}


def voyage(query: str, texts: list[str]) -> dict[str, Any]:
    return {"query": query, "documents": texts, "truncation": True}


def score(query: str, texts: list[str]) -> dict[str, Any]:
    return {"queries": query, "documents": texts}


def score_texts(query: str, texts: list[str]) -> dict[str, Any]:
    return {"text_1": query, "text_2": texts}


def results(answer: Any) -> Any:
    return answer["results"]


def data(answer: Any) -> Any:
    return answer["data"]


SPOKEN = {
    "cohere v2": Spoken("/v2/rerank", plain, results),
    "cohere v2, prefixed": Spoken("/cohere/v2/rerank", plain, results),
    "cohere v1": Spoken("/cohere/v1/rerank", plain, results),
    "cohere v1 or jina": Spoken("/v1/rerank", plain, results),
    "jina": Spoken("/jina/v1/rerank", plain, results),
    "voyage": Spoken("/v1/rerank", voyage, data),
    "voyage, prefixed": Spoken("/voyage/v1/rerank", plain, data),
    "infinity": Spoken("/infinity/rerank", plain, results),
    "vllm rerank": Spoken("/rerank", plain, results),
    "vllm rerank, v1": Spoken("/vllm/v1/rerank", plain, results),
    "vllm rerank, v2": Spoken("/vllm/v2/rerank", plain, results),
    "tei": Spoken("/rerank", tei, lambda answer: answer, "score"),
    "tei, prefixed": Spoken("/tei/rerank", tei, lambda answer: answer, "score"),
    "nim": Spoken("/v1/ranking", nim, lambda answer: answer["rankings"], "logit", raw=True),
    "nim, prefixed": Spoken("/nim/v1/ranking", nim, lambda answer: answer["rankings"], "logit", raw=True),
    "vllm score": Spoken("/score", score, data, "score", ordered=False),
    "vllm score, v1": Spoken("/v1/score", score_texts, data, "score", ordered=False),
    "vllm score, prefixed": Spoken("/vllm/score", score_texts, data, "score", ordered=False),
}


def options(model: str, raw: bool) -> dict[str, str]:
    return {"normalize": "none"} if raw else probabilities(model)


def by_score(spoken: Spoken, hits: Hits) -> Hits:
    """`/score` answers in the order of the documents."""
    if spoken.ordered:
        return hits
    assert [index for index, _ in hits] == list(range(len(hits)))
    return sorted(hits, key=lambda hit: -hit[1])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SPOKEN)
def test_every_dialect_says_what_the_client_says(server: Server, name: str, model: str) -> None:
    spoken = SPOKEN[name]
    expected = expect(server, model, **options(model, spoken.raw))
    hits = by_score(spoken, spoken.found(spoken.ask(server, model)))
    expected.check(hits)
    assert len(hits) == len(TEXTS)


@pytest.mark.parametrize("name", ["cohere v2", "jina", "voyage", "vllm rerank", "tei", "nim", "vllm score"])
def test_many_questions(server: Server, name: str) -> None:
    spoken = SPOKEN[name]
    for query, texts in random_questions(12):
        hits = by_score(spoken, spoken.found(spoken.ask(server, LOGIT, query, texts)))
        expect(server, LOGIT, query, texts, **options(LOGIT, spoken.raw)).check(hits)


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
        expected.check(by_score(spoken, spoken.found(spoken.ask(server, model, **body))))


# ── exactly these keys ──

USAGE = ["prompt_tokens", "total_tokens"]
KEYS = {
    "cohere v2": ["id", "results", "meta"],
    "cohere v1": ["id", "results", "meta"],
    "jina": ["model", "usage", "results", "id", "meta"],
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
def test_documents_come_back_when_asked_for(server: Server, name: str) -> None:
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


def test_tokens_are_those_of_the_native_route(server: Server) -> None:
    tokens = server.score(PROBABILITY, QUERY, TEXTS)["usage"]["input_tokens"]
    for name in ("jina", "infinity", "vllm rerank", "nim", "vllm score"):
        assert SPOKEN[name].ask(server, PROBABILITY)["usage"] == dict.fromkeys(USAGE, tokens)
    assert SPOKEN["voyage"].ask(server, PROBABILITY)["usage"] == {"total_tokens": tokens}
    for name in ("cohere v2", "cohere v1"):
        assert SPOKEN[name].ask(server, PROBABILITY)["meta"]["tokens"] == {"input_tokens": tokens}


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


def test_a_body_without_a_model_is_for_the_first_one(server: Server) -> None:
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


def test_what_tei_says_of_itself(server: Server) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == PROBABILITY and info["max_input_length"] == 128
    assert "reranker" in info["model_type"] and info["auto_truncate"] is True


def test_an_openapi_path_for_every_dialect(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/info", "/embed", *(spoken.path for spoken in SPOKEN.values())} <= set(paths)
    for path, methods in paths.items():
        content = (
            methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        )
        for example in content.get("examples", {}).values():
            answer = server.post(path, example["value"])
            assert answer.status_code == 200 and "x-sie-warnings" not in answer.headers, path
