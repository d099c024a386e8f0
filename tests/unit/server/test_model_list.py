"""The order of GET /v1/models, and the fields that clients of other servers read there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import sie_server
from support.servers.inprocess import asking, post

MINI = Path(sie_server.__file__).parent / "embedded" / "mini-en"
NAMED = ["z/first", "a/second", "BAAI/bge-reranker-base"]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """Serve one checkpoint under three ids, not in alphabetical order; one of them is in the catalog."""
    with asking(dict.fromkeys(NAMED, MINI)) as client:
        post(client, "/v1/admin/load", {"model": "sie/mini-en"})
        yield client


def names(client: TestClient, path: str = "/v1/models") -> list[str]:
    answer = client.get(path).json()
    listed = [model["name"] for model in answer["models"]]
    assert [entry["id"] for entry in answer["data"]] == listed
    return listed


def test_named_models_come_first_then_loaded_ones_then_the_catalog(client: TestClient) -> None:
    listed = names(client)
    assert listed[:4] == [*NAMED, "sie/mini-en"]
    assert len(listed) == len(set(listed)) > 50 and listed[4:] == sorted(listed[4:])


def test_the_first_model_is_the_one_of_a_body_without_model(client: TestClient) -> None:
    answer = post(client, "/v1/rerank", {"query": "rain", "documents": ["a"]})
    assert answer["model"] == names(client)[0]


def test_the_order_stays_after_an_unload_and_a_swap(client: TestClient) -> None:
    post(client, "/v1/admin/unload", {"model": "z/first"})
    post(client, "/v1/admin/unload", {"model": "sie/mini-en"})
    assert names(client)[:3] == NAMED and names(client)[3] != "sie/mini-en"
    post(client, "/v1/admin/load", {"model": "sie/mini-en"})
    assert names(client)[:4] == [*NAMED, "sie/mini-en"]


@pytest.mark.parametrize("path", ["/nim/v1/models", "/vllm/v1/models"])
def test_other_servers_list_only_what_is_served_and_scores(client: TestClient, path: str) -> None:
    assert names(client, path) == [*NAMED, "sie/mini-en"]


def test_entries_have_the_fields_that_clients_read(client: TestClient) -> None:
    answer = client.get("/v1/models").json()
    by_id: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in answer["data"]}
    entry = by_id["a/second"]
    assert entry == {
        "id": "a/second",
        "object": "model",
        "created": entry["created"],
        "owned_by": "a",
        "root": "a/second",
        "parent": None,
        "max_model_len": 256,
        "model_type": "rerank",
    }
    assert isinstance(entry["created"], int) and entry["created"] > 1_700_000_000
    assert by_id["Alibaba-NLP/gte-modernbert-base"]["model_type"] == "embedding"
    assert by_id["BAAI/bge-reranker-v2-m3"]["model_type"] == "rerank"  # not loaded


def test_one_model_has_them_too_and_an_alias_names_its_model(client: TestClient) -> None:
    info = client.get("/v1/models/sie/mini-en").json()
    assert (info["id"], info["object"], info["model_type"], info["name"]) == (
        "sie/mini-en",
        "model",
        "rerank",
        "sie/mini-en",
    )
    alias = client.get("/v1/models/cross-encoder/ms-marco-MiniLM-L-6-v2").json()
    assert alias["id"] == "cross-encoder/ms-marco-MiniLM-L-6-v2"
    assert alias["root"] == "cross-encoder/ms-marco-MiniLM-L6-v2"
