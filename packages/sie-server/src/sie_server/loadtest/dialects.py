"""The client's side of each rerank API: the path, the body of a request, and the scores in an answer.

`api.dialects` holds the server's side. Amazon Bedrock is absent, because its requests need AWS's signatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sie_server.loadtest.errors import Failure

Json = dict[str, Any]
Body = Callable[[str, str, Sequence[str]], Json]
Scores = list[float]


@dataclass(frozen=True)
class Results:
    """The place of the results in an answer, and the fields of each one."""

    keys: tuple[str, ...]  # from the answer to the list; () if the answer is the list
    score: str
    index: str | None = "index"  # None: the results are in the order of the documents

    def read(self, answer: Any, documents: int) -> Scores:
        """Return the scores in the order of the documents.

        Raises:
            Failure: the answer has another form, or not exactly one finite score for each document.
        """
        for key in self.keys:
            answer = answer.get(key) if isinstance(answer, dict) else None
        where = ".".join(self.keys) or "the answer"
        if not isinstance(answer, list):
            raise Failure("no results", f"`{where}` is not a list")
        if len(answer) != documents:
            raise Failure("wrong number of results", f"{len(answer)} results for {documents} documents")
        scores: dict[int, float] = {}
        for place, result in enumerate(answer):
            score = result.get(self.score) if isinstance(result, dict) else None
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise Failure("missing scores", f"`{where}[{place}].{self.score}` is not a finite number")
            scores[self._index(result, place)] = float(score)
        if sorted(scores) != list(range(documents)):
            raise Failure("wrong results", f"`{where}` does not have each document once")
        return [scores[place] for place in range(documents)]

    def _index(self, result: Json, place: int) -> int:
        index = place if self.index is None else result.get(self.index)
        if isinstance(index, str) and index.isdecimal():  # ids are texts in SIE's own API
            index = int(index[:9])
        if isinstance(index, bool) or not isinstance(index, int):
            raise Failure("wrong results", f"`{self.index}` of result {place} is not a place in the request")
        return index


@dataclass(frozen=True)
class ClientDialect:
    """One API. `body` takes model, query and documents."""

    name: str
    path: str
    body: Body
    results: Results
    needs_model: bool = True
    key_header: str = "Authorization"
    headers: Mapping[str, str] | None = None

    def path_for(self, model: str) -> str:
        """Return the path; SIE's contains the model."""
        return self.path.replace("{model}", quote(model, safe="/:@"))

    def key_headers(self, key: str) -> dict[str, str]:
        """Return the headers that carry an API key; none if there is no key."""
        if not key:
            return {}
        return {self.key_header: f"Bearer {key}" if self.key_header == "Authorization" else key}


def _with(documents_name: str, **fixed: Any) -> Body:
    def body(model: str, query: str, documents: Sequence[str]) -> Json:
        named = {"model": model} if model else {}
        return {**named, "query": query, documents_name: list(documents), **fixed}

    return body


def _sie(model: str, query: str, documents: Sequence[str]) -> Json:
    items = [{"id": str(place), "text": text} for place, text in enumerate(documents)]
    return {"query": {"text": query}, "items": items}


def _nim(model: str, query: str, documents: Sequence[str]) -> Json:
    named = {"model": model} if model else {}
    passages = [{"text": text} for text in documents]
    return {**named, "query": {"text": query}, "passages": passages, "truncate": "END"}


def _vllm_score(model: str, query: str, documents: Sequence[str]) -> Json:
    return {**({"model": model} if model else {}), "text_1": query, "text_2": list(documents)}


def _pinecone(model: str, query: str, documents: Sequence[str]) -> Json:
    texts = [{"text": text} for text in documents]
    return {"model": model, "query": query, "documents": texts, "return_documents": False}


def _dashscope(model: str, query: str, documents: Sequence[str]) -> Json:
    return {"model": model, "input": {"query": query, "documents": list(documents)}}


DOCUMENTS = _with("documents")
RELEVANCE = Results(("results",), "relevance_score")
PINECONE_HEADERS = {"X-Pinecone-API-Version": "2025-10"}
ALL = (
    ClientDialect("sie", "/v1/score/{model}", _sie, Results(("scores",), "score", "item_id")),
    ClientDialect("cohere-v2", "/v2/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect("cohere-v1", "/v1/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect("jina", "/v1/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect(
        "voyage", "/v1/rerank", _with("documents", truncation=True), Results(("data",), "relevance_score")
    ),
    ClientDialect("vllm", "/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect("vllm-score", "/score", _vllm_score, Results(("data",), "score")),
    ClientDialect("infinity", "/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect("tei", "/rerank", _with("texts", truncate=True), Results((), "score"), needs_model=False),
    ClientDialect("mixedbread", "/v1/reranking", _with("input"), Results(("data",), "score")),
    ClientDialect("nim", "/v1/ranking", _nim, Results(("rankings",), "logit")),
    ClientDialect("sglang", "/v1/rerank", DOCUMENTS, Results((), "score")),
    ClientDialect("zeroentropy", "/v1/models/rerank", DOCUMENTS, RELEVANCE),
    ClientDialect("isaacus", "/v1/rerankings", _with("texts"), Results(("results",), "score")),
    ClientDialect(
        "pinecone",
        "/rerank",
        _pinecone,
        Results(("data",), "score"),
        key_header="Api-Key",
        headers=PINECONE_HEADERS,
    ),
    ClientDialect(
        "dashscope",
        "/api/v1/services/rerank/text-rerank/text-rerank",
        _dashscope,
        Results(("output", "results"), "relevance_score"),
    ),
    ClientDialect("dashscope-compatible", "/compatible-api/v1/reranks", DOCUMENTS, RELEVANCE),
    ClientDialect("weaviate", "/rerank", DOCUMENTS, Results(("scores",), "score", None), needs_model=False),
)
DIALECTS = {dialect.name: dialect for dialect in ALL}
# Those that tell servers apart, in the order in which they are tried.
PROBED = ("sie", "tei", "cohere-v2", "jina", "voyage", "infinity", "nim", "vllm-score", "mixedbread")
