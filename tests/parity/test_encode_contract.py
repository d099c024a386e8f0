"""`encode`: number formats, Matryoshka widths, prompts and order equal sentence-transformers on the same files."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings
from starlette.testclient import TestClient

from sie_server.catalog import EMBEDDED
from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.encoders import make_encoder, write_json
from support.device import DEVICE
from support.servers.inprocess import asking, post

TEXTS = [random_text(random.Random(i), n) for i, n in enumerate((0, 1, 4, 40, 300))] + ["Zürich 東京"]
PROMPTS: dict[str, Any] = {
    "prompts": {"query": "rain falls: ", "passage": "contracts: ", "other": "stars "},
    "default_prompt_name": "other",
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "raw": {"normalize": False},
    "prompted": {"prompts": PROMPTS},
    "default": {"prompts": {"prompts": {"all": "stars burn: "}, "default_prompt_name": "all"}},
    "empty": {"prompts": {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: make_encoder(root / name, **layout) for name, layout in LAYOUTS.items()}


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[TestClient]:
    with asking({**folders, "mini": EMBEDDED / "mini-en"}) as client:
        yield client


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> dict[str, SentenceTransformer]:
    return {name: SentenceTransformer(str(path), device="cpu") for name, path in folders.items()}


def encode(client: TestClient, model: str, status: int = 200, texts: list[str] = TEXTS, **params: Any) -> Any:
    body = {"items": [{"text": text} for text in texts], "params": params}
    return post(client, f"/v1/encode/{model}", body, status)


def dense(answer: Any) -> npt.NDArray[Any]:
    return np.array([item["dense"]["values"] for item in answer["items"]])


# ── prompts ──


@pytest.mark.parametrize("model", sorted(LAYOUTS))
@pytest.mark.parametrize("where", ["params", "options"])
@pytest.mark.parametrize("is_query", [True, False])
def test_prompts_are_those_of_sentence_transformers(
    client: TestClient, reference: dict[str, SentenceTransformer], model: str, where: str, is_query: bool
) -> None:
    asked = {"is_query": is_query} if where == "params" else {"options": {"is_query": is_query}}
    expected = (
        reference[model].encode_query(TEXTS, show_progress_bar=False)
        if is_query
        else reference[model].encode_document(
            # sentence-transformers 6.2 would prefer its own empty document prompt to the file's passage prompt
            TEXTS,
            prompt_name="passage" if model == "prompted" else None,
            show_progress_bar=False,
        )
    )
    np.testing.assert_allclose(dense(encode(client, model, **asked)), expected, atol=1e-4)


def test_query_and_document_prompts_differ(client: TestClient) -> None:
    query, document = (dense(encode(client, "prompted", is_query=flag)) for flag in (True, False))
    assert np.abs(query - document).max() > 0.01
    np.testing.assert_array_equal(dense(encode(client, "prompted")), document)


def test_the_default_prompt_applies_without_is_query(
    client: TestClient, reference: dict[str, SentenceTransformer]
) -> None:
    expected = reference["default"].encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(dense(encode(client, "default")), expected, atol=1e-4)
    assert np.abs(dense(encode(client, "default", is_query=False)) - expected).max() > 0.01


@pytest.mark.parametrize("where", ["params", "options"])
def test_an_instruction_replaces_the_prompt(
    client: TestClient, reference: dict[str, SentenceTransformer], where: str
) -> None:
    asked = {"instruction": "quiet harbour: "}
    answer = encode(client, "prompted", **(asked if where == "params" else {"options": asked}), is_query=True)
    expected = reference["prompted"].encode(TEXTS, prompt="quiet harbour: ", show_progress_bar=False)
    np.testing.assert_allclose(dense(answer), expected, atol=1e-4)


@pytest.mark.parametrize("model", ["plain", "empty", "mini"])
def test_a_model_without_prompts_refuses_an_instruction(client: TestClient, model: str) -> None:
    answer = encode(client, model, 400, instruction="find")
    assert "$.params.instruction" in answer["detail"]["message"]


def test_contradicting_is_query_is_refused(client: TestClient) -> None:
    answer = encode(client, "prompted", 400, is_query=True, options={"is_query": False})
    assert "$.params.is_query" in answer["detail"]["message"]


@pytest.mark.parametrize(
    "broken",
    [{"prompts": {"query": 3}}, {"prompts": ["query"]}, {"prompts": {}, "default_prompt_name": "query"}],
)
def test_broken_prompts_stop_the_load(tmp_path: Path, broken: dict[str, Any]) -> None:
    directory = make_encoder(tmp_path / "broken", prompts=broken)
    with pytest.raises(ModelLoadFailed, match=r"config_sentence_transformers\.json"):
        Engine(directory, device=DEVICE)


def test_a_pooling_that_excludes_prompts_is_refused(tmp_path: Path) -> None:
    directory = make_encoder(tmp_path / "instructor", prompts=PROMPTS)
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True, "include_prompt": False}
    write_json(directory / "1_Pooling" / "config.json", pooling)
    with pytest.raises(ModelLoadFailed, match="include_prompt"):
        Engine(directory, device=DEVICE)


# ── widths ──


@pytest.mark.parametrize("width", [1, 8, 47, 48])
def test_dimensions_are_cut_and_normalised_again(
    client: TestClient, reference: dict[str, SentenceTransformer], width: int
) -> None:
    answer = encode(client, "plain", options={"dimensions": width})
    assert answer["items"][0]["dense"]["dims"] == width
    expected = reference["plain"].encode(
        TEXTS, truncate_dim=width, normalize_embeddings=True, show_progress_bar=False
    )
    np.testing.assert_allclose(dense(answer), expected, atol=1e-4)


def test_vectors_that_were_not_normalised_are_only_cut(
    client: TestClient, reference: dict[str, SentenceTransformer]
) -> None:
    expected = reference["raw"].encode(TEXTS, truncate_dim=16, show_progress_bar=False)
    np.testing.assert_allclose(
        dense(encode(client, "raw", options={"dimensions": 16})), expected, atol=1e-4, rtol=1e-4
    )


def test_token_vectors_are_cut_too(client: TestClient) -> None:
    answer = encode(client, "mini", output_types=["multivector"], options={"dimensions": 32})
    for item in answer["items"]:
        values = np.array(item["multivector"]["values"])
        assert (
            values.shape == (item["multivector"]["num_tokens"], 32)
            and item["multivector"]["token_dims"] == 32
        )
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("width", [0, -1, 49, 1.5, "8"])
def test_a_width_the_model_does_not_have_is_refused(client: TestClient, width: Any) -> None:
    answer = encode(client, "plain", 400, options={"dimensions": width})
    assert "$.params.options.dimensions" in answer["detail"]["message"]


# ── number formats ──


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_have_the_documented_scale(client: TestClient, dtype: str) -> None:
    exact = dense(encode(client, "plain"))
    answer = encode(client, "plain", output_dtype=dtype)
    assert {item["dense"]["dtype"] for item in answer["items"]} == {dtype}
    values = dense(answer)
    assert values.dtype == np.int64 and values.min() < (100 if dtype == "uint8" else -20)
    restored = (values - (128 if dtype == "uint8" else 0)) / 127
    assert np.abs(restored - exact).max() <= 0.5 / 127 + 1e-6
    assert (restored * exact).sum(1).min() > 0.99


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_packed_bits_equal_sentence_transformers(
    client: TestClient, reference: dict[str, SentenceTransformer], dtype: str
) -> None:
    exact = reference["plain"].encode(TEXTS, show_progress_bar=False)
    assert np.abs(exact).min() > 1e-6  # so that rounding cannot change a sign
    answer = encode(client, "plain", output_dtype=dtype)
    np.testing.assert_array_equal(dense(answer), quantize_embeddings(exact, precision=dtype))
    assert answer["items"][0]["dense"]["dims"] == 48


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integers_of_vectors_without_unit_length_are_refused(client: TestClient, dtype: str) -> None:
    message = encode(client, "raw", 400, output_dtype=dtype)["detail"]["message"]
    assert "$.params.output_dtype" in message and "float16" in message


def test_float16_and_token_vectors_in_int8(client: TestClient) -> None:
    half = dense(encode(client, "plain", output_dtype="float16"))
    np.testing.assert_allclose(half, dense(encode(client, "plain")), atol=1e-3)
    exact, small = (
        encode(client, "mini", texts=["stars burn"], output_types=["multivector"], output_dtype=dtype)
        for dtype in ("float32", "int8")
    )
    difference = np.array(small["items"][0]["multivector"]["values"]) / 127 - np.array(
        exact["items"][0]["multivector"]["values"]
    )
    assert np.abs(difference).max() <= 0.5 / 127 + 1e-6


# ── order ──


@pytest.mark.parametrize("outputs", [["dense", "multivector"], ["multivector", "dense"]])
def test_outputs_come_in_the_requested_order(client: TestClient, outputs: list[str]) -> None:
    body = {"items": [{"id": "a", "text": "rain"}, {"text": "x " * 400}], "params": {"output_types": outputs}}
    answer = post(client, "/v1/encode/mini", body)
    assert [list(item) for item in answer["items"]] == [["id", *outputs], [*outputs, "truncated"]]
