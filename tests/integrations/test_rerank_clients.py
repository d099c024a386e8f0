"""More rerank clients of the field, each as its own library sends requests and reads answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import isaacus
import mixedbread
import mixedbread_ai.client
import pytest
import zeroentropy
from contextual import ContextualAI
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.mixedbreadai_rerank import MixedbreadAIRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from mixedbread_ai.errors import BadRequestError
from rerankers.models.api_rankers import APIRanker
from xinference_client.client.restful.restful_client import RESTfulRerankModelHandle

from support.requests.questions import KEY, PROBABILITY, QUERY, TEXTS, Hits, expect
from support.servers.processes import Server

MODEL = PROBABILITY


# ── mixedbread, mixedbread-ai ──


def test_mixedbread(server: Server) -> None:
    client = mixedbread.Mixedbread(api_key=KEY, base_url=server.base_url)
    answer = client.rerank(model=MODEL, query=QUERY, input=TEXTS, top_k=3, return_input=True)
    expect(server, MODEL).check([(hit.index, hit.score) for hit in answer.data])
    assert [hit.input for hit in answer.data] == [TEXTS[hit.index] for hit in answer.data]
    assert answer.top_k == 3 and answer.return_input and answer.usage.total_tokens > 0
    objects = [{"title": text, "n": i} for i, text in enumerate(TEXTS)]
    ranked = client.rerank(model=MODEL, query=QUERY, input=objects, rank_fields=["title"])
    expect(server, MODEL).check([(hit.index, hit.score) for hit in ranked.data])
    with pytest.raises(mixedbread.BadRequestError, match=r"\$\.input"):
        client.rerank(model=MODEL, query=QUERY, input=[])
    with pytest.raises(mixedbread.NotFoundError, match="mxbai"):
        client.rerank(model="mxbai", query=QUERY, input=TEXTS)


def test_mixedbread_ai(server: Server) -> None:
    client = mixedbread_ai.client.MixedbreadAI(api_key=KEY, base_url=server.base_url)
    answer = client.reranking(model=MODEL, query=QUERY, input=TEXTS, return_input=True)
    expect(server, MODEL).check([(hit.index, hit.score) for hit in answer.data])
    assert answer.data[0].input == TEXTS[answer.data[0].index] and answer.top_k == len(TEXTS)
    with pytest.raises(BadRequestError) as caught:
        client.reranking(model=MODEL, query=QUERY, input=[])
    assert "$.input" in caught.value.body.message


# ── zeroentropy, contextual, xinference ──


def test_zeroentropy(server: Server) -> None:
    client = zeroentropy.ZeroEntropy(api_key=KEY, base_url=f"{server.base_url}/v1")
    answer = client.models.rerank(model=MODEL, query=QUERY, documents=TEXTS, top_n=2)
    expect(server, MODEL).check([(hit.index, hit.relevance_score) for hit in answer.results])
    assert answer.total_tokens > 0 and answer.total_bytes > 100 and answer.inference_latency > 0
    with pytest.raises(zeroentropy.BadRequestError, match=r"\$\.documents"):
        client.models.rerank(model=MODEL, query=QUERY, documents=[])


def test_isaacus(server: Server) -> None:
    client = isaacus.Isaacus(api_key=KEY, base_url=f"{server.base_url}/v1")
    answer = client.rerankings.create(model=MODEL, query=QUERY, texts=TEXTS, top_n=3)  # type: ignore[arg-type]
    expect(server, MODEL).check([(hit.index, hit.score) for hit in answer.results])
    assert answer.usage.input_tokens > 0
    with pytest.raises(isaacus.BadRequestError, match="Isaacus Query Language"):
        client.rerankings.create(model=MODEL, query=QUERY, texts=TEXTS, is_iql=True)  # type: ignore[arg-type]


def test_contextual(server: Server) -> None:
    client = ContextualAI(api_key=KEY, base_url=f"{server.base_url}/v1")
    answer = client.rerank.create(model=MODEL, query=QUERY, documents=TEXTS, metadata=[""] * len(TEXTS))
    expect(server, MODEL).check([(hit.index, hit.relevance_score) for hit in answer.results])


def test_xinference(server: Server) -> None:
    handle = RESTfulRerankModelHandle(MODEL, server.base_url, {})
    answer = handle.rerank(TEXTS, QUERY, top_n=3, return_documents=True, return_len=True)
    expect(server, MODEL).check([(hit["index"], hit["relevance_score"]) for hit in answer["results"]])
    assert answer["meta"]["tokens"]["output_tokens"] == 0
    with pytest.raises(RuntimeError, match="at least one document"):
        handle.rerank([], QUERY)


# ── rerankers ──


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("mixedbread.ai", "/v1/reranking"),
        ("pinecone", "/pinecone/rerank"),
        ("isaacus", "/v1/rerankings"),
        ("jina", "/v1/rerank"),
        ("cohere", "/v1/rerank"),
        ("voyage", "/v1/rerank"),
        ("text-embeddings-inference", "/tei/rerank"),
    ],
)
def test_rerankers(server: Server, provider: str, path: str) -> None:
    ranker = APIRanker(MODEL, KEY, provider, verbose=0, url=server.base_url + path)
    found = ranker.rank(QUERY, TEXTS)
    expect(server, MODEL).check([(hit.doc_id, hit.score) for hit in found.results])
    assert len(found.results) == len(TEXTS)


# ── llama-index ──


def nvidia(server: Server) -> Any:
    return NVIDIARerank(model=MODEL, base_url=f"{server.base_url}/v1", api_key=KEY, top_n=3, truncate="END")


def mixedbread_node(server: Server) -> Any:
    # this package has no option for the base URL, so it is changed in the client that it has made
    ranker = MixedbreadAIRerank(model=MODEL, api_key=KEY, top_n=3)
    ranker._client = ranker._client.with_options(base_url=server.base_url)
    return ranker


LLAMA_INDEX: dict[str, Callable[[Server], Any]] = {
    "jina": lambda server: JinaRerank(model=MODEL, base_url=f"{server.base_url}/v1", api_key=KEY, top_n=3),
    "siliconflow": lambda server: SiliconFlowRerank(
        model=MODEL, base_url=f"{server.base_url}/v1/rerank", api_key=KEY, top_n=3
    ),
    "tei": lambda server: TextEmbeddingInference(base_url=server.base_url, top_n=3),
    "nvidia": nvidia,
    "mixedbread": mixedbread_node,
}


@pytest.mark.parametrize("name", LLAMA_INDEX)
def test_llama_index_postprocessors(server: Server, name: str) -> None:
    texts = [text or "empty" for text in TEXTS]
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i))) for i, text in enumerate(texts)]
    found = LLAMA_INDEX[name](server).postprocess_nodes(nodes, query_str=QUERY)
    options = {"normalize": "none"} if name == "nvidia" else {}
    hits: Hits = [(int(node.node.node_id), node.score) for node in found]
    expect(server, MODEL, texts=texts, **options).check(hits)
    assert len(hits) == 3


# ── litellm ──


def test_litellm_for_azure(server: Server) -> None:
    import litellm  # the import takes seconds, so it is limited to the worker of these tests

    base, options = f"{server.base_url}/providers/cohere/v2", {"top_n": 3, "api_key": KEY}
    answer = litellm.rerank(f"azure_ai/{MODEL}", QUERY, TEXTS, api_base=base, **options)
    hits = [(hit["index"], hit["relevance_score"]) for hit in answer.results]
    expect(server, MODEL).check(hits)
    assert len(hits) == 3


# ── recorded requests of libraries whose requirements conflict with others here ──

RECORDED: dict[str, tuple[str, dict[str, Any], str]] = {
    # together 3.1: client.rerank.create
    "together": ("/v1/rerank", {"query": QUERY, "documents": TEXTS, "model": MODEL, "top_n": 3}, "results"),
    # dashscope 2.0: TextReRank.call
    "dashscope": (
        "/api/v1/services/rerank/text-rerank/text-rerank",
        {
            "model": MODEL,
            "input": {"query": QUERY, "documents": TEXTS},
            "parameters": {"return_documents": False, "top_n": 3},
        },
        "output.results",
    ),
    # pinecone 10.2: inference.rerank
    "pinecone": (
        "/pinecone/rerank",
        {
            "model": MODEL,
            "query": QUERY,
            "documents": [{"text": text} for text in TEXTS],
            "rank_fields": ["text"],
            "return_documents": True,
            "top_n": 3,
        },
        "data",
    ),
    # sglang 0.5: the body of its documentation
    "sglang": ("/sglang/v1/rerank", {"model": MODEL, "query": QUERY, "documents": TEXTS, "top_n": 3}, ""),
    # Weaviate 1.21 and later: modules/reranker-transformers
    "weaviate": ("/rerank", {"query": QUERY, "documents": TEXTS, "property": ""}, "scores"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests(server: Server, name: str) -> None:
    path, body, place = RECORDED[name]
    answer = httpx.post(server.base_url + path, json=body, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200 and "x-sie-warnings" not in answer.headers, answer.text
    hits = answer.json()
    for part in filter(None, place.split(".")):
        hits = hits[part]
    if name == "weaviate":
        found = sorted(((i, hit["score"]) for i, hit in enumerate(hits)), key=lambda hit: -hit[1])
    else:
        found = [(hit["index"], hit.get("relevance_score", hit.get("score"))) for hit in hits]
        assert len(found) == 3
    expect(server, MODEL).check(found)
