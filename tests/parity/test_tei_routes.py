"""TEI's routes besides /rerank and /embed, and SageMaker's, agree with the libraries that made the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.encoders import make_encoder, make_splade
from support.servers.inprocess import asking, post

PAIRS = [["rain", "rain falls"], ["what do stars burn?", "stars burn hydrogen"], ["rain", "stars"]]
TEXTS = ["rain falls", "stars burn hydrogen", "Größe, naïve"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("tei")
    make_cross_encoder(root / "ranker", "bert")
    make_encoder(root / "encoder")
    make_splade(root / "splade")
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    with asking({f"org/{name}": root / name for name in ("ranker", "splade", "encoder")}) as client:
        yield client


@pytest.fixture(scope="module")
def ranker(root: Path) -> Iterator[TestClient]:
    with asking({"org/ranker": root / "ranker"}) as client:
        yield client


@pytest.fixture(scope="module")
def logits(root: Path) -> Any:
    model = CrossEncoder(str(root / "ranker"), device="cpu")
    return model.predict(PAIRS, activation_fn=torch.nn.Identity())


def test_predict_scores_pairs(client: TestClient, logits: Any) -> None:
    expected = 1 / (1 + np.exp(-logits))
    found = post(client, "/predict", {"inputs": PAIRS})
    assert [[entry["label"] for entry in one] for one in found] == [["LABEL_0"]] * 3
    np.testing.assert_allclose([one[0]["score"] for one in found], expected, atol=1e-5)
    raw = post(client, "/tei/predict", {"inputs": PAIRS, "raw_scores": True})
    np.testing.assert_allclose([one[0]["score"] for one in raw], logits, atol=1e-4)
    [alone] = post(client, "/predict", {"inputs": PAIRS[1]})
    assert alone["score"] == pytest.approx(expected[1], abs=1e-5)
    pipeline = {"inputs": {"text": PAIRS[1][0], "text_pair": PAIRS[1][1]}}
    assert post(client, "/predict", pipeline) == [alone]


@pytest.mark.parametrize(
    "inputs", ["rain", ["rain"], [["rain"]], [["a", "b", "c"]], [["a", 1]], [], {"text": "a"}, 5]
)
def test_predict_refuses_what_is_not_a_pair(client: TestClient, inputs: Any) -> None:
    answer = post(client, "/predict", {"inputs": inputs}, 400)
    assert "$.inputs" in answer["error"] and answer["error_type"] == "Validation"


def test_embed_sparse(client: TestClient, root: Path) -> None:
    expected = SparseEncoder(str(root / "splade"), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    found = post(client, "/embed_sparse", {"inputs": TEXTS})
    for entries, vector in zip(found, expected.cpu().numpy(), strict=True):
        dense = np.zeros_like(vector)
        for entry in entries:
            dense[entry["index"]] = entry["value"]
        np.testing.assert_allclose(dense, vector, atol=1e-4)


def test_tokenize_and_decode(client: TestClient, root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "encoder")
    body = {"model": "org/encoder", "inputs": TEXTS}
    for special in (True, False):
        found = post(client, "/tokenize", {**body, "add_special_tokens": special})
        wanted = tokenizer(TEXTS, add_special_tokens=special, return_offsets_mapping=True)
        assert [[token["id"] for token in one] for one in found] == wanted["input_ids"]
        for text, tokens, spans in zip(TEXTS, found, wanted["offset_mapping"], strict=True):
            for token, (start, stop) in zip(tokens, spans, strict=True):
                if not token["special"]:
                    assert (token["start"], token["stop"], token["text"]) == (start, stop, text[start:stop])
        assert found[0][0]["special"] is special
    ids = tokenizer(TEXTS)["input_ids"]
    for skip in (True, False):
        body = {"model": "org/encoder", "ids": ids, "skip_special_tokens": skip}
        assert post(client, "/decode", body) == tokenizer.batch_decode(ids, skip_special_tokens=skip)
    assert post(client, "/decode", {"model": "org/encoder", "ids": ids[0]}) == ["rain falls"]


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/decode", {"ids": ["a"]}, "$.ids"),
        ("/decode", {"ids": [[1], 2]}, "$.ids"),
        ("/decode", {"ids": [-1]}, "$.ids"),
        ("/decode", {"ids": [True]}, "$.ids"),
        ("/decode", {"ids": [2**32]}, "$.ids"),
        ("/tokenize", {"inputs": "a" * 100_001}, "$.inputs"),
        ("/tokenize", {"inputs": "a", "prompt_name": "query"}, "$.prompt_name"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "$.inputs.sentences"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [1]}}, "$.inputs.sentences[0]"),
        ("/similarity", {"inputs": {"sentences": ["a"]}}, "$.inputs.source_sentence"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["a", "rain " * 900]}, "truncate": False},
            "$.inputs.sentences[1]",
        ),
        ("/embed_all", {"inputs": "a"}, "/v1/encode"),
        ("/embed", {"inputs": "a", "truncation_direction": "Left"}, "$.truncation_direction"),
    ],
)
def test_refusals_name_the_field(client: TestClient, path: str, body: dict[str, Any], where: str) -> None:
    assert where in post(client, path, body, 400)["error"]


@pytest.mark.parametrize("path", ["/", "/tei", "/invocations"])
def test_the_body_decides(client: TestClient, ranker: TestClient, root: Path, logits: Any, path: str) -> None:
    vectors = SentenceTransformer(str(root / "encoder"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(post(client, path, {"inputs": TEXTS}), vectors, atol=1e-5)
    np.testing.assert_allclose(post(client, path, {"inputs": TEXTS[0]}), vectors[:1], atol=1e-5)
    sentences = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    np.testing.assert_allclose(post(client, path, sentences), vectors[1:] @ vectors[0], atol=1e-5)
    query, text = PAIRS[1]
    tei = post(client, path, {"query": query, "texts": [text], "raw_scores": True})
    assert tei[0]["score"] == pytest.approx(float(logits[1]), abs=1e-4)
    cohere = post(client, path, {"query": query, "documents": [text]})
    assert cohere["results"][0]["index"] == 0 and cohere["meta"]
    openai = post(client, path, {"input": TEXTS})["data"]
    np.testing.assert_allclose([one["embedding"] for one in openai], vectors, atol=1e-5)
    predicted = post(ranker, path, {"inputs": PAIRS, "raw_scores": True})
    np.testing.assert_allclose([one[0]["score"] for one in predicted], logits, atol=1e-4)
    assert "$" in post(client, path, {"text": "rain"}, 400)["error"]


INFO = {
    "model_id", "model_sha", "model_dtype", "model_type", "max_concurrent_requests", "max_input_length",
    "max_batch_tokens", "max_batch_requests", "max_client_batch_size", "auto_truncate", "tokenization_workers",
    "version", "sha", "docker_label",
}  # fmt: skip


def test_info_and_models_have_what_their_clients_require(client: TestClient) -> None:
    assert client.get("/info").json().keys() == INFO
    for path in ("/models", "/infinity/models"):
        entries = client.get(path).json()["data"]
        assert [entry["id"] for entry in entries] == ["org/ranker", "org/splade", "org/encoder"]
        assert all(entry["stats"].keys() >= {"queue_fraction", "queue_absolute"} for entry in entries)
