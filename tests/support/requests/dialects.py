"""The request of each dialect, and the place of the ranking in its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.requests.questions import QUERY, TEXTS, Hits
from support.servers.processes import Server


@dataclass(frozen=True)
class Spoken:
    """The request of a dialect, and the place of the hits in its answer."""

    path: str
    body: Callable[[str, list[str]], dict[str, Any]]
    hits: Callable[[Any], list[dict[str, Any]]]
    score: str = "relevance_score"
    raw: bool = False
    ordered: bool = True

    def request(self, model: str, query: str, texts: list[str], **more: Any) -> dict[str, Any]:
        return {"model": model, **self.body(query, texts), **more}

    def ask(
        self, server: Server, model: str, query: str = QUERY, texts: list[str] = TEXTS, **more: Any
    ) -> Any:
        answer = server.post(self.path, self.request(model, query, texts, **more))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def found(self, answer: Any) -> Hits:
        """Return positions and scores, the best first; `/score` answers in the order of the documents."""
        hits = [(hit["index"], hit[self.score]) for hit in self.hits(answer)]
        if self.ordered:
            return hits
        assert [index for index, _ in hits] == list(range(len(hits)))
        return sorted(hits, key=lambda hit: -hit[1])


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
