"""Embedding clients of other vendors against a real server, compared with the vectors of our own client."""

from __future__ import annotations

from typing import Any

import httpx
import litellm
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from tei_client import HttpClient

from sie_sdk import SIEClient
from support.requests.questions import KEY, QUERY, TEXTS
from support.servers.processes import Server

MODEL = "toy/encoder"


@pytest.fixture(scope="module")
def expected(server: Server) -> np.ndarray[Any, Any]:
    with SIEClient(server.base_url) as ours:
        return np.stack([one["dense"] for one in ours.encode(MODEL, [{"text": text} for text in TEXTS])])


def test_litellm_embeds(server: Server, expected: np.ndarray[Any, Any]) -> None:
    """The library sends `encoding_format: null`."""
    for provider in ("openai", "litellm_proxy", "hosted_vllm"):
        answer = litellm.embedding(
            f"{provider}/{MODEL}", input=TEXTS, api_base=f"{server.base_url}/v1", api_key=KEY
        )
        np.testing.assert_allclose([one["embedding"] for one in answer.data], expected, atol=1e-6)


def test_langchain_embeds_with_text_and_not_with_token_ids(
    server: Server, expected: np.ndarray[Any, Any]
) -> None:
    options = {"model": MODEL, "base_url": f"{server.base_url}/v1", "api_key": KEY}
    vectors = OpenAIEmbeddings(check_embedding_ctx_length=False, **options).embed_documents(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    # by default the library sends the ids of its own tokenizer
    answer = httpx.post(f"{server.base_url}/v1/embeddings", json={"model": MODEL, "input": [[3, 4]]})
    assert answer.status_code == 400 and "check_embedding_ctx_length=False" in answer.text


def test_llama_index_embeds(server: Server, expected: np.ndarray[Any, Any]) -> None:
    embedder = OpenAIEmbedding(model_name=MODEL, api_base=f"{server.base_url}/v1", api_key=KEY)
    np.testing.assert_allclose(embedder.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(embedder.get_query_embedding(TEXTS[0]), expected[0], atol=1e-6)


def test_tei_client(server: Server) -> None:
    client = HttpClient(server.base_url)
    info = client.info()
    assert info.server_model_id == "toy/bert" and info.max_client_batch_size and client.health()
    ranks = client.rerank(QUERY, TEXTS, return_text=True).ranks
    assert len(ranks) == len(TEXTS) and all(rank.text == TEXTS[rank.index] for rank in ranks)
    assert [rank.score for rank in ranks] == sorted((rank.score for rank in ranks), reverse=True)
    [tokens] = client.tokenize(TEXTS[0])
    assert tokens.tokens[0].special and client.decode([tokens.get_ids()])


def test_huggingface_hub_compares_sentences(server: Server) -> None:
    for path in ("/", "/similarity"):
        client = InferenceClient(server.base_url + path, token=KEY)
        found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
        assert found[0] == pytest.approx(1, abs=1e-4) and len(found) == len(TEXTS)
    vectors = InferenceClient(server.base_url, token=KEY).feature_extraction(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_bodies_of_the_client_of_infinity(server: Server, expected: np.ndarray[Any, Any]) -> None:
    """Recorded from infinity_client 0.0.78, which requires another version of httpx."""
    for prefix in ("", "/infinity"):
        body = {
            "input": TEXTS,
            "model": MODEL,
            "encoding_format": "float",
            "user": None,
            "dimensions": 0,
            "modality": "text",
        }
        answer = httpx.post(f"{server.base_url}{prefix}/embeddings", json=body)
        assert answer.status_code == 200 and "x-sie-warnings" not in answer.headers
        np.testing.assert_allclose([one["embedding"] for one in answer.json()["data"]], expected, atol=1e-6)
        listed = httpx.get(f"{server.base_url}{prefix}/models").json()
        assert {"stats", "id"} <= listed["data"][0].keys() and listed["data"][0]["owned_by"] == "infinity"
    assert httpx.get(f"{server.base_url}/health").json()["unix"] > 1_700_000_000


def test_the_body_of_llama_index_for_tei(server: Server) -> None:
    """Recorded from llama-index-embeddings-text-embeddings-inference 0.6.0."""
    answer = httpx.post(f"{server.base_url}/embed", json={"inputs": TEXTS, "truncate": True})
    assert len(answer.json()) == len(TEXTS) and "x-sie-warnings" not in answer.headers


def test_huggingface_hub_sends_the_options_of_tei(server: Server) -> None:
    client = InferenceClient(f"{server.base_url}/embed", token=KEY)
    plain = client.feature_extraction(TEXTS, truncate=True, normalize=True)
    with SIEClient(server.base_url) as ours:
        queries = ours.encode(MODEL, [{"text": text} for text in TEXTS], is_query=True)
    asked = client.feature_extraction(TEXTS, prompt_name="query")
    np.testing.assert_allclose(asked, np.stack([one["dense"] for one in queries]), atol=1e-4)
    assert plain.shape == asked.shape
