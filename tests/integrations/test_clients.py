"""The vendors' own client libraries against a real server: order, scores, documents and token counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import openai
import pytest
import voyageai
from huggingface_hub import InferenceClient
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

from sie_sdk import SIEClient
from support.requests.questions import KEY, MODELS, PROBABILITY, QUERY, TEXTS, expect, probabilities
from support.servers.inprocess import asking
from support.servers.processes import Server

MODEL = PROBABILITY


def results(answer: Any) -> list[tuple[int, float]]:
    return [(hit.index, hit.relevance_score) for hit in answer.results]


# ── cohere ──


@pytest.mark.parametrize("model", MODELS)
def test_cohere_v2(server: Server, model: str) -> None:
    client = cohere.ClientV2(KEY, base_url=server.base_url)
    answer = client.rerank(model=model, query=QUERY, documents=TEXTS)
    expect(server, model, **probabilities(model)).check(results(answer))
    assert len(answer.results) == len(TEXTS)
    assert answer.id and answer.meta.billed_units.search_units == 1 and answer.meta.tokens.input_tokens > 0
    best = client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=2)
    expect(server, model, **probabilities(model)).check(results(best))
    assert len(best.results) == 2


async def test_cohere_v2_async(server: Server) -> None:
    client = cohere.AsyncClientV2(KEY, base_url=server.base_url)
    answers = await asyncio.gather(
        *(client.rerank(model=MODEL, query=QUERY, documents=TEXTS) for _ in range(5))
    )
    for answer in answers:
        expect(server, MODEL).check(results(answer))


@pytest.mark.parametrize("prefix", ["", "/cohere"])
def test_cohere_v1(server: Server, prefix: str) -> None:
    client = cohere.Client(KEY, base_url=server.base_url + prefix)
    plain = client.rerank(model=MODEL, query=QUERY, documents=TEXTS)
    expect(server, MODEL).check(results(plain))
    assert all(hit.document is None for hit in plain.results)
    assert plain.id and plain.meta.billed_units.search_units == 1
    with_documents = client.rerank(query=QUERY, documents=TEXTS, return_documents=True, top_n=3)
    assert [hit.document.text for hit in with_documents.results] == [TEXTS[i] for i, _ in results(plain)[:3]]


def test_cohere_v1_rank_fields(server: Server) -> None:
    client = cohere.Client(KEY, base_url=server.base_url)
    documents = [{"title": text[:9], "text": text, "pages": 7} for text in TEXTS]
    fields = ["title", "pages", "text"]
    answer = client.rerank(
        model=MODEL, query=QUERY, documents=documents, rank_fields=fields, return_documents=True
    )
    joined = [f"title: {text[:9]}\npages: 7\ntext: {text}" for text in TEXTS]
    expect(server, MODEL, texts=joined).check(results(answer))
    assert all(hit.document.title == TEXTS[hit.index][:9] for hit in answer.results)


def test_cohere_counts_search_units_by_hundred_documents(server: Server) -> None:
    client = cohere.ClientV2(KEY, base_url=server.base_url)
    for count, units in ((100, 1), (101, 2), (201, 3)):
        answer = client.rerank(model=MODEL, query="rain", documents=["rain"] * count)
        assert answer.meta.billed_units.search_units == units


def test_cohere_truncates_documents_at_max_tokens_per_doc(server: Server) -> None:
    client = cohere.ClientV2(KEY, base_url=server.base_url)
    text = "rain falls tomorrow over the quiet harbour"
    answer = client.rerank(model=MODEL, query="rain", documents=[text], max_tokens_per_doc=2)
    expect(server, MODEL, "rain", ["rain falls"]).check(results(answer))
    assert "1 of 1 texts" in answer.meta.warnings[0] and "max_tokens_per_doc 2" in answer.meta.warnings[0]


def test_langchain_cohere(server: Server) -> None:
    reranker = CohereRerank(
        base_url=server.base_url, cohere_api_key=KEY, model=MODEL, top_n=3, user_agent="tests"
    )
    found = reranker.compress_documents(
        [Document(text, metadata={"n": i}) for i, text in enumerate(TEXTS)], QUERY
    )
    expect(server, MODEL).check([(d.metadata["n"], d.metadata["relevance_score"]) for d in found])
    assert len(found) == 3


# ── voyageai ──


@pytest.mark.parametrize("prefix", ["", "/voyage"])
def test_voyage(server: Server, prefix: str) -> None:
    client = voyageai.Client(api_key=KEY, base_url=f"{server.base_url}{prefix}/v1")
    answer = client.rerank(QUERY, TEXTS, model=MODEL)
    expect(server, MODEL).check(results(answer))
    assert [hit.document for hit in answer.results] == [TEXTS[i] for i, _ in results(answer)]
    assert answer.total_tokens > 0
    best = client.rerank(QUERY, TEXTS, model=MODEL, top_k=2)
    assert [i for i, _ in results(best)] == [i for i, _ in results(answer)][:2]


async def test_voyage_async(server: Server) -> None:
    client = voyageai.AsyncClient(api_key=KEY, base_url=f"{server.base_url}/v1")
    expect(server, MODEL).check(results(await client.rerank(QUERY, TEXTS, model=MODEL)))


# ── litellm ──

# provider → path of its api_base on this server
PROVIDERS = {
    "cohere": "",
    "jina_ai": "",
    "infinity": "/infinity",
    "voyage": "/voyage",
    "hosted_vllm": "",
    "huggingface": "",
    "nvidia_nim/ranking": "/nim",
}


def ask_litellm(server: Server, provider: str, **options: Any) -> Any:
    import litellm  # the import takes seconds, so it is limited to the worker of these tests

    return litellm.rerank(
        model=f"{provider}/{MODEL}",
        query=QUERY,
        documents=TEXTS,
        api_base=server.base_url + PROVIDERS[provider],
        api_key=KEY,
        **options,
    )


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm(server: Server, provider: str) -> None:
    raw = {"normalize": "none"} if provider.startswith("nvidia") else {}
    expected = expect(server, MODEL, **raw)
    for options in ({}, {"top_n": 2}, {"return_documents": False}):
        answer = ask_litellm(server, provider, **options)
        hits = [(hit["index"], hit["relevance_score"]) for hit in answer.results]
        expected.check(hits)
        assert len(hits) == options.get("top_n", len(TEXTS))
        for hit in answer.results:
            if "document" in hit and TEXTS[hit["index"]]:
                assert hit["document"] == {"text": TEXTS[hit["index"]]}


@pytest.mark.parametrize("provider", ["cohere", "jina_ai", "infinity", "voyage", "hosted_vllm"])
def test_litellm_returns_documents_only_if_requested(server: Server, provider: str) -> None:
    asked = ask_litellm(server, provider, return_documents=True).results
    assert all(hit["document"] == {"text": TEXTS[hit["index"]]} for hit in asked if TEXTS[hit["index"]])
    assert not any("document" in hit for hit in ask_litellm(server, provider, return_documents=False).results)


# ── huggingface_hub ──


def test_huggingface_hub_embeds(server: Server) -> None:
    """The library cannot rerank. Its vectors come from the first model unless the body names another."""
    vectors = InferenceClient(f"{server.base_url}/embed", token=KEY).feature_extraction(TEXTS)
    assert vectors.shape[0] == len(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


# ── openai ──


def test_openai_lists_the_served_models_first(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=KEY)
    listed = client.models.list().data
    assert [model.id for model in listed[:4]] == ["toy/bert", "toy/logit", "toy/encoder", "sie/mini-en"]
    one = client.models.retrieve("sie/mini-en")
    for model in (listed[3], one):
        assert (model.id, model.object, model.owned_by) == ("sie/mini-en", "model", "sie")
        assert model.created > 1_700_000_000
    served = openai.OpenAI(base_url=f"{server.base_url}/nim/v1", api_key=KEY).models.list().data
    assert [model.id for model in served] == ["toy/bert", "toy/logit", "sie/mini-en"]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
def test_openai_embeds(server: Server, encoding: Any) -> None:
    """The library requests base64 by default, and decodes it."""
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=KEY)
    answer = client.embeddings.create(model="toy/encoder", input=TEXTS, **encoding)
    with SIEClient(server.base_url) as ours:
        expected = ours.encode("toy/encoder", [{"text": text} for text in TEXTS])
    found = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(found, np.stack([one["dense"] for one in expected]), atol=1e-6)


# ── limits of API keys ──


def test_a_limit_of_the_key_is_the_library_s_own_error(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f"[[key]]\nname='a'\nkey='{KEY}-of-sixteen'\nlimits={{requests_per_second=0.01, burst=1}}"
    )
    with asking({}, api_keys_file=str(file)) as http:
        key, url, documents = f"{KEY}-of-sixteen", str(http.base_url), TEXTS[:1]
        vectors = openai.OpenAI(api_key=key, base_url=f"{url}/v1", http_client=http, max_retries=0)
        reranker = cohere.ClientV2(key, base_url=url, httpx_client=http)
        assert vectors.models.list().data
        with pytest.raises(openai.RateLimitError, match="requests_per_second"):
            vectors.embeddings.create(model="sie/mini-en", input=documents)
        with pytest.raises(cohere.TooManyRequestsError, match="requests_per_second"):
            reranker.rerank(
                model="sie/mini-en", query=QUERY, documents=documents, request_options={"max_retries": 0}
            )
