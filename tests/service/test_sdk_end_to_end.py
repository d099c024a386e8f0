"""What the documentation promises, with the real client against the real server (its samples are in test_samples).

The models bear the ids of the documentation and are tiny: their answers are checked against each other, not for sense.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

import sie_sdk
from sie_sdk import SIEAsyncClient, SIEClient, errors, maxsim
from sie_sdk.types import Item
from sie_server import __version__
from support.checkpoints.cross_encoders import WORDS
from support.servers.processes import Server

RERANKER, ENCODER, MINI = "BAAI/bge-reranker-v2-m3", "BAAI/bge-m3", "sie/mini-en"
QUERY = Item(text="What is machine learning?")
ITEMS = [
    Item(text="Machine learning is a subset of AI that learns from data."),
    Item(text="The weather forecast predicts rain tomorrow."),
    Item(text="Deep neural networks power modern ML systems."),
]


@pytest.fixture
def client(documented: Server) -> Iterator[SIEClient]:
    with SIEClient(documented.base_url) as client:
        yield client


def plain(result: Any) -> dict[str, Any]:
    """An answer without its request id, which differs each time."""
    return {key: value for key, value in result.items() if key != "request_id"}


def test_the_first_example(client: SIEClient) -> None:
    result = client.score(RERANKER, QUERY, ITEMS)
    lines = [f"Rank {entry['rank']}: {entry['score']:.3f}" for entry in result["scores"]]
    assert [line[:7] for line in lines] == ["Rank 0:", "Rank 1:", "Rank 2:"]
    assert result["model"] == RERANKER and result["query_id"] is None
    assert result["usage"]["input_tokens"] > 0
    assert all(0 < entry["score"] < 1 for entry in result["scores"])
    assert result["request_id"].isascii()


def test_ids_lead_back_to_the_records(client: SIEClient) -> None:
    query = Item(id="q1", text="What is Python?")
    items = [
        Item(id="doc-1", text="Python is a programming language."),
        Item(id="doc-2", text="Snakes are reptiles."),
        Item(id="doc-3", text="Python was created by Guido van Rossum."),
    ]
    result = client.score(RERANKER, query, items)
    assert result["query_id"] == "q1"
    assert {entry["item_id"] for entry in result["scores"]} == {"doc-1", "doc-2", "doc-3"}


def test_two_stages(client: SIEClient) -> None:
    text = "What is machine learning?"
    embedding = client.encode(ENCODER, Item(text=text), is_query=True)
    documents = client.encode(ENCODER, [Item(id=f"doc-{i}", text=f"text number {i}") for i in range(100)])
    similarity = [document["dense"] @ embedding["dense"] for document in documents]
    best = sorted(range(100), key=lambda i: -similarity[i])[:20]
    result = client.score(
        RERANKER, query=Item(text=text), items=[Item(id=f"doc-{i}", text=f"text number {i}") for i in best]
    )
    top = [entry["item_id"] for entry in result["scores"][:10]]
    assert len(set(top)) == 10 and set(top) <= {f"doc-{i}" for i in best}


def test_the_embedded_model_ranks_with_sense(client: SIEClient) -> None:
    result = client.score(MINI, QUERY, ITEMS)
    assert [entry["item_id"] for entry in result["scores"]] == ["item-0", "item-2", "item-1"]


async def test_sync_async_and_json_agree(documented: Server, client: SIEClient) -> None:
    """The JSON request is the one the documentation sends with curl."""
    items = [
        Item(text="Machine learning uses algorithms to learn from data."),
        Item(text="The weather is sunny today."),
    ]
    ours = await asyncio.to_thread(client.score, RERANKER, QUERY, items)
    async with SIEAsyncClient(documented.base_url) as other:
        theirs = await other.score(RERANKER, QUERY, items)
    async with httpx.AsyncClient() as curl:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "curl/8"}
        body = json.dumps({"query": QUERY, "items": items})
        answer = await curl.post(
            f"{documented.base_url}/v1/score/{RERANKER}", content=body, headers=headers, timeout=60
        )
    assert plain(ours) == plain(theirs) == answer.json()


async def test_many_calls_at_once_each_get_their_own_answer(documented: Server) -> None:
    questions = [
        (
            WORDS[i % 20] + f" {i}",
            [Item(id=f"{i}-{k}", text=WORDS[(i * 7 + k) % len(WORDS)]) for k in range(1 + i % 5)],
        )
        for i in range(60)
    ]
    async with SIEAsyncClient(documented.base_url) as client:
        alone = [
            await client.score(RERANKER, Item(id=q, text=f"rain {q}"), items) for q, items in questions[:10]
        ]
        together = await asyncio.gather(
            *(client.score(RERANKER, Item(id=q, text=f"rain {q}"), items) for q, items in questions)
        )
    for (query, items), result in zip(questions, together, strict=True):
        assert result["query_id"] == query
        assert {entry["item_id"] for entry in result["scores"]} == {item["id"] for item in items}
    for one, same in zip(alone, together, strict=False):
        scores = [{entry["item_id"]: entry["score"] for entry in result["scores"]} for result in (one, same)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_one_client_is_shared_by_threads(client: SIEClient) -> None:
    expected = plain(client.score(RERANKER, QUERY, ITEMS))
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: client.score(RERANKER, QUERY, ITEMS), range(40)))
    for result in results:
        assert [entry["item_id"] for entry in result["scores"]] == [e["item_id"] for e in expected["scores"]]
    assert len({result["request_id"] for result in results}) == 40


def test_encode_one_and_many(client: SIEClient) -> None:
    one = client.encode(ENCODER, ITEMS[0])
    many = client.encode(ENCODER, [*ITEMS, Item(id="x", text="")])
    assert one["dense"].shape == (48,) and one["dense"].dtype == np.float32
    assert np.linalg.norm(one["dense"]) == pytest.approx(1, abs=1e-5)
    assert len(many) == 4 and many[3]["id"] == "x"
    assert many[0]["dense"] == pytest.approx(one["dense"], abs=1e-5)
    assert client.encode(ENCODER, [ITEMS[0]])[0]["dense"] == pytest.approx(one["dense"], abs=1e-5)


def test_token_vectors_and_number_formats(client: SIEClient) -> None:
    query = client.encode(MINI, QUERY, output_types=["multivector"])["multivector"]
    documents = [r["multivector"] for r in client.encode(MINI, ITEMS, output_types=["multivector"])]
    assert query.ndim == 2 and query.shape[1] == 384 and "dense" not in query.dtype.name
    assert int(np.argmax([maxsim(query, document) for document in documents])) == 0
    half = client.encode(MINI, QUERY, output_dtype="float16")["dense"]
    bits = client.encode(MINI, QUERY, output_dtype="ubinary")["dense"]
    whole = client.encode(MINI, QUERY)["dense"]
    assert half.dtype == np.float16 and half == pytest.approx(whole, abs=1e-3)
    assert np.array_equal(bits, np.packbits(whole > 0))


async def test_encode_sync_and_async_agree(documented: Server, client: SIEClient) -> None:
    ours = await asyncio.to_thread(client.encode, ENCODER, ITEMS)
    async with SIEAsyncClient(documented.base_url) as other:
        theirs = await other.encode(ENCODER, ITEMS)
        single = await other.encode(ENCODER, ITEMS[1], output_types=["dense"])
    for left, right in zip(ours, theirs, strict=True):
        assert np.array_equal(left["dense"], right["dense"])
    assert single["dense"] == pytest.approx(ours[1]["dense"], abs=1e-5)


async def test_models(documented: Server, client: SIEClient) -> None:
    listed = {model["name"]: model for model in client.list_models()}
    assert listed[RERANKER]["loaded"] and listed[RERANKER]["outputs"] == ["score"]
    assert listed[ENCODER]["outputs"] == ["dense"] and listed[ENCODER]["dims"] == {"dense": 48}
    assert not listed["BAAI/bge-reranker-base"]["loaded"]
    assert client.get_model(RERANKER) == listed[RERANKER]
    async with SIEAsyncClient(documented.base_url) as other:
        assert await other.get_model(MINI) == listed[MINI]
        assert {model["name"] for model in await other.list_models()} == set(listed)


def test_options_and_warnings(client: SIEClient) -> None:
    result = client.score(
        RERANKER, QUERY, [*ITEMS, Item(text="rain " * 500)], options={"top_n": 4, "typo": 1}
    )
    assert [entry.get("truncated") for entry in result["scores"] if entry["item_id"] == "item-3"] == [True]
    assert len(result["warnings"]) == 2
    assert len(client.score(RERANKER, QUERY, ITEMS, options={"top_n": 1})["scores"]) == 1


def test_errors_arrive_as_their_classes(client: SIEClient) -> None:
    with pytest.raises(errors.ModelNotFoundError, match="did you mean 'BAAI/bge-reranker-v2-m3'") as unknown:
        client.score("BAAI/bge-reranker-v2-m4", QUERY, ITEMS)
    assert unknown.value.status == 404 and unknown.value.code == "MODEL_NOT_FOUND"
    assert unknown.value.request_id and not unknown.value.retryable
    with pytest.raises(errors.RequestError, match=r"\$\.items\[1\]\.text") as wrong:
        client.score(RERANKER, QUERY, [ITEMS[0], Item(id="no text")])
    assert wrong.value.code == "INVALID_INPUT" and wrong.value.status == 400
    with pytest.raises(errors.RequestError, match=r"\$\.instruction"):
        client.score(RERANKER, QUERY, ITEMS, instruction="Find what helps")
    with pytest.raises(errors.RequestError, match="has no output 'score'"):
        client.score(ENCODER, QUERY, ITEMS)
    with pytest.raises(errors.RequestError, match="multivector"):
        client.score(RERANKER, QUERY, [Item(text="a", multivector=np.ones((2, 4), np.float32))])
    with pytest.raises(errors.ModelLoadFailedError, match="local directory") as failed:
        client.score("BAAI/bge-reranker-base", QUERY, ITEMS)
    assert failed.value.attempts == 1 and failed.value.error_class and not failed.value.permanent
    with pytest.raises(errors.ModelNotFoundError):
        client.get_model("nobody/nothing")


def test_an_error_of_the_model_and_a_body_too_long(server: Server) -> None:
    with SIEClient(server.base_url) as client:
        with pytest.raises(errors.InferenceError, match="weights") as failed:
            client.score("toy/nan", QUERY, ITEMS)
        assert failed.value.status == 500
        with pytest.raises(errors.InputTooLongError, match="8 MiB"):
            client.score("toy/bert", QUERY, [Item(text="x" * (9 * 2**20))])
        assert client.score("toy/bert", QUERY, ITEMS)["scores"]


def test_client_and_server_of_one_release_agree_on_the_version(
    client: SIEClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sie_sdk"):
        client.score(RERANKER, QUERY, ITEMS)
    assert caplog.records == []
    assert sie_sdk.__version__ == __version__
