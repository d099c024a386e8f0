"""Scores from the real application: type, normalisation, raw logits, documents."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_server.catalog import EMBEDDED
from support.checkpoints.cross_encoders import make_cross_encoder, random_text
from support.servers.inprocess import ask, asking, in_order, post

QUERY = "machine learning"
TEXTS = [random_text(random.Random(i), 1 + 3 * i) for i in range(12)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the same weights twice: one names no activation (so sigmoid), one names the identity."""
    root = tmp_path_factory.mktemp("contract")
    models = {"sigmoid": make_cross_encoder(root / "sigmoid", "bert"), "identity": root / "identity"}
    # a copy, because training the tokenizer again may give a different one
    shutil.copytree(models["sigmoid"], models["identity"])
    config = models["identity"] / "config.json"
    named = {"activation_fn": "torch.nn.modules.linear.Identity"}
    config.write_text(json.dumps({**json.loads(config.read_text()), "sentence_transformers": named}))
    return models


@pytest.fixture(scope="module")
def client(checkpoints: dict[str, Path]) -> Iterator[TestClient]:
    with asking({**checkpoints, "mini": EMBEDDED / "mini-en"}, document_cache_mb=0) as client:
        yield client


@pytest.fixture(scope="module")
def logits(checkpoints: dict[str, Path]) -> list[float]:
    directory = checkpoints["sigmoid"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    inputs = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found: list[float] = model(**inputs).logits[:, 0].tolist()
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("model", "normalize", "kind"),
    [
        ("sigmoid", None, "probability"),
        ("sigmoid", "sigmoid", "probability"),  # not applied twice
        ("sigmoid", "none", "logit"),
        ("identity", None, "logit"),
        ("identity", "none", "logit"),
        ("identity", "sigmoid", "probability"),
    ],
)
def test_normalisation_is_applied_once_to_the_raw_logit(
    client: TestClient, logits: list[float], model: str, normalize: str | None, kind: str
) -> None:
    answer = ask(client, model, QUERY, TEXTS, normalize=normalize, return_logits=True)
    expected = [sigmoid(x) for x in logits] if kind == "probability" else logits
    assert answer["score_type"] == kind
    np.testing.assert_allclose(in_order(answer), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(in_order(answer, "logit"), logits, atol=1e-4, rtol=0)
    raw = [entry["logit"] for entry in answer["scores"]]
    assert raw == sorted(raw, reverse=True)
    assert "warnings" not in answer


def test_extras_are_absent_unless_requested(client: TestClient) -> None:
    answer = ask(client, "sigmoid", QUERY, TEXTS)
    assert list(answer) == ["model", "query_id", "scores", "usage", "score_type"]
    assert all(list(entry) == ["item_id", "score", "rank"] for entry in answer["scores"])


def test_documents_are_returned_in_their_own_entry(client: TestClient) -> None:
    answer = ask(client, "sigmoid", QUERY, TEXTS, return_documents=True, top_n=5)
    assert len(answer["scores"]) == 5
    for entry in answer["scores"]:
        assert entry["document"] == {"text": TEXTS[int(entry["item_id"].removeprefix("item-"))]}


def test_late_interaction_says_maxsim_and_has_neither_logit_nor_probability(client: TestClient) -> None:
    plain = ask(client, "mini", QUERY, TEXTS)
    assert plain["score_type"] == "maxsim"
    assert ask(client, "mini", QUERY, TEXTS, normalize="none")["scores"] == plain["scores"]
    for options, field in (
        ({"normalize": "sigmoid"}, "normalize"),
        ({"return_logits": True}, "return_logits"),
    ):
        answer = ask(client, "mini", QUERY, TEXTS, 400, **options)
        assert answer["code"] == "INVALID_INPUT"
        assert "maxsim" in answer["detail"]["message"]
        assert f"$.options.{field}" in answer["detail"]["message"]


def test_logits_that_the_sigmoid_cannot_tell_apart_keep_their_order(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = make_cross_encoder(tmp_path / "steep", "bert")
    weights = load_file(directory / "model.safetensors")
    weights["classifier.weight"] *= 200
    weights["classifier.bias"] += 1000
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with asking({"steep": directory}) as client:
        raw = in_order(ask(client, "steep", QUERY, TEXTS, normalize="none"))
        squashed = ask(client, "steep", QUERY, TEXTS)
    assert len({entry["score"] for entry in squashed["scores"]}) < len(TEXTS)  # some are exactly 1.0
    order = [int(entry["item_id"].removeprefix("item-")) for entry in squashed["scores"]]
    assert order == sorted(range(len(raw)), key=lambda i: -raw[i])


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "softmax"},
        {"normalize": True},
        {"return_documents": "yes"},
        {"return_logits": 1},
        {"top_n": 0},
    ],
)
def test_wrong_values_name_the_option(client: TestClient, options: dict[str, Any]) -> None:
    answer = ask(client, "sigmoid", QUERY, TEXTS, 400, **options)
    assert f"$.options.{next(iter(options))}" in answer["detail"]["message"]


@pytest.mark.parametrize("model", ["sigmoid", "mini"])
def test_texts_that_are_too_long_can_be_refused(client: TestClient, model: str) -> None:
    long = "stars burn " * 300
    assert ask(client, model, QUERY, TEXTS, long_document="refuse") == ask(client, model, QUERY, TEXTS)
    for query, texts, path in (
        (QUERY, [*TEXTS, long], f"$.items[{len(TEXTS)}]"),
        (long, TEXTS, "$.query.text"),
    ):
        message = ask(client, model, query, texts, 400, long_document="refuse")["detail"]["message"]
        assert path in message and "longer" in message


@pytest.mark.parametrize("model", ["sigmoid", "mini"])
def test_max_document_tokens_truncates_each_document(client: TestClient, model: str) -> None:
    words = "stars burn hydrogen into helium"
    answer = ask(client, model, "rain", [words, "stars"], max_document_tokens=2, long_document="refuse")
    whole = ask(client, model, "rain", ["stars burn", "stars"])
    np.testing.assert_allclose(in_order(answer), in_order(whole), atol=1e-6)
    cut = {entry["item_id"]: entry.get("truncated", False) for entry in answer["scores"]}
    assert cut == {"item-0": True, "item-1": False}
    assert "1 of 2 texts" in answer["warnings"][0] and "max_document_tokens 2" in answer["warnings"][0]
    both = {"max_document_tokens": 2, "long_document": "chunk"}
    assert (
        "$.options.max_document_tokens"
        in ask(client, model, "rain", [words], 400, **both)["detail"]["message"]
    )


def test_an_option_of_the_other_route_is_reported(client: TestClient) -> None:
    assert "is_query" in ask(client, "sigmoid", QUERY, TEXTS, is_query=True)["warnings"][0]
    body = {"items": [{"text": "rain"}], "params": {"options": {"normalize": "none"}}}
    assert "normalize" in post(client, "/v1/encode/mini", body)["warnings"][0]
