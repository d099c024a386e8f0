"""`POST /v1/embeddings` answers as OpenAI's clients expect."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.encoders import make_encoder
from support.servers.inprocess import asking, post

TEXTS = ["rain falls", "", "stars burn hydrogen"]
ROUTE = "/v1/embeddings"


PROMPTS = {
    "prompts": {"query": "stars: ", "document": "rain: ", "classification": "law: ", "code.query": "sea: "},
    "default_prompt_name": None,
}
DEFAULT = {**PROMPTS, "default_prompt_name": "classification"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("openai")
    make_cross_encoder(root / "ranker", "bert")
    make_encoder(root / "plain")
    make_encoder(root / "raw", normalize=False)
    make_encoder(root / "prompted", prompts=PROMPTS)
    make_encoder(root / "default", prompts=DEFAULT)
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[TestClient]:
    names = ("ranker", "plain", "raw", "prompted", "default")
    with asking({f"org/{name}": root / name for name in names}) as client:
        yield client


@pytest.fixture(scope="module")
def library(root: Path) -> dict[str, SentenceTransformer]:
    return {
        name: SentenceTransformer(str(root / name), device="cpu") for name in ("prompted", "default", "raw")
    }


def vectors(client: TestClient, model: str, **body: Any) -> np.ndarray[Any, Any]:
    answer = post(client, ROUTE, {"model": f"org/{model}", "input": TEXTS, **body})
    return np.array([d["embedding"] for d in answer["data"]])


def warnings(client: TestClient, path: str = ROUTE, **body: Any) -> list[str]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: list[str] = json.loads(answer.headers.get("x-sie-warnings", "[]"))
    return found


def expected(client: TestClient, model: str = "org/plain", **options: Any) -> np.ndarray[Any, Any]:
    body = {"items": [{"text": text} for text in TEXTS], "params": {"options": options}}
    answer = post(client, f"/v1/encode/{model}", body)
    return np.array([item["dense"]["values"] for item in answer["items"]])


def test_the_list_object(client: TestClient) -> None:
    answer = post(client, ROUTE, {"model": "org/plain", "input": TEXTS})
    assert answer["object"] == "list" and answer["model"] == "org/plain"
    assert [(d["object"], d["index"]) for d in answer["data"]] == [("embedding", i) for i in range(3)]
    np.testing.assert_allclose([d["embedding"] for d in answer["data"]], expected(client), atol=1e-6)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_one_text_alone(client: TestClient) -> None:
    [one] = post(client, ROUTE, {"model": "org/plain", "input": TEXTS[2]})["data"]
    np.testing.assert_allclose(one["embedding"], expected(client)[2], atol=1e-6)


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    answer = post(client, ROUTE, {"model": "org/plain", "input": TEXTS, "encoding_format": "base64"})
    values = [np.frombuffer(base64.b64decode(d["embedding"]), "<f4") for d in answer["data"]]
    np.testing.assert_allclose(values, expected(client), atol=1e-6)


def test_dimensions(client: TestClient) -> None:
    answer = post(client, ROUTE, {"model": "org/plain", "input": TEXTS, "dimensions": 8})
    np.testing.assert_allclose(
        [d["embedding"] for d in answer["data"]], expected(client, dimensions=8), atol=1e-6
    )


CHOICES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"input_type": None, "prompt_name": None, "is_query": None}, None),
    ({"input_type": "text"}, None),
    ({"input_type": "query"}, "query"),
    ({"input_type": "search_query"}, "query"),
    ({"task": "retrieval.query"}, "query"),
    ({"task_type": "RETRIEVAL_QUERY"}, "query"),
    ({"is_query": True}, "query"),
    ({"input_type": "passage"}, "document"),
    ({"input_type": "search_document"}, "document"),
    ({"task": "retrieval.passage"}, "document"),
    ({"is_query": False}, "document"),
    ({"input_type": "classification"}, "classification"),
    ({"task": "code.query"}, "code.query"),
    ({"prompt_name": "classification"}, "classification"),
    ({"prompt_name": "query"}, "query"),
]


@pytest.mark.parametrize("model", ["prompted", "default"])
def test_prompts_are_those_of_sentence_transformers(
    client: TestClient, library: dict[str, SentenceTransformer], model: str
) -> None:
    expected = {name: library[model].encode(TEXTS, prompt_name=name) for name in (None, *PROMPTS["prompts"])}
    for body, name in CHOICES:
        np.testing.assert_allclose(
            vectors(client, model, **body), expected[name], atol=2e-6, err_msg=str(body)
        )
    assert np.abs(expected["query"] - expected["document"]).max() > 0.01


def test_the_text_of_a_prompt(client: TestClient, library: dict[str, SentenceTransformer]) -> None:
    for model in ("prompted", "raw"):  # one has prompts, one has none
        expected = library[model].encode(TEXTS, prompt="law and sea ")
        np.testing.assert_allclose(vectors(client, model, prompt="law and sea "), expected, atol=2e-6)
    np.testing.assert_allclose(
        vectors(client, "default", prompt=""), library["default"].encode(TEXTS, prompt=""), atol=2e-6
    )


def test_a_task_without_a_prompt_is_reported(client: TestClient) -> None:
    [warning] = warnings(client, model="org/prompted", input=TEXTS, input_type="clustering")
    assert "no prompt for 'clustering'" in warning
    assert not warnings(client, model="org/plain", input=TEXTS, input_type="clustering")  # knows no tasks


def test_null_is_absent_and_odd_defaults_mean_all(client: TestClient) -> None:
    expected = vectors(client, "plain")
    nothing = dict.fromkeys(
        (
            "encoding_format",
            "dimensions",
            "user",
            "truncate",
            "normalize",
            "prompt",
            "embedding_types",
            "task",
        )
    )
    for body in (
        nothing,
        {"dimensions": 0},
        {"dimensions": -1},
        {"truncate_prompt_tokens": -1},
        {"truncate": "NONE"},
        {"truncation": True},
        {"embedding_types": ["float"]},
        {"normalize": True},
        {"modality": "text", "user": "u", "late_chunking": False},
        {"input": [{"text": text} for text in TEXTS]},
    ):
        np.testing.assert_allclose(vectors(client, "plain", **body), expected, atol=1e-6, err_msg=str(body))
        assert not warnings(client, **{"model": "org/plain", "input": TEXTS, **body})


def test_without_a_model_the_first_that_encodes_answers(client: TestClient) -> None:
    for path in (ROUTE, "/embeddings", "/infinity/embeddings"):
        answer = post(client, path, {"input": TEXTS, "model": None})
        assert answer["model"] == "org/plain"
    found = post(client, "/embed", {"inputs": TEXTS[2]})
    np.testing.assert_allclose(found, vectors(client, "plain")[2:], atol=1e-6)


def test_what_is_ignored_or_cut_is_reported(client: TestClient) -> None:
    long = "rain " * 600
    found = warnings(client, model="org/plain", input=[long], quality="high")
    assert "unknown field `quality` was ignored" in found
    assert any("were cut at the end" in warning for warning in found)
    found = warnings(client, "/embed", model="org/plain", inputs=[long])
    assert any("were cut at the end" in warning for warning in found)
    for path, body in (
        (ROUTE, {"input": ["rain", long], "truncate": "NONE"}),
        (ROUTE, {"input": ["rain", long], "truncation": False}),
        ("/embed", {"inputs": ["rain", long], "truncate": False}),
    ):
        error = post(client, path, {"model": "org/plain", **body}, 400)["error"]
        message = error if isinstance(error, str) else error["message"]
        assert "must not be truncated" in message and message.endswith(
            f"- at `$.{'input' if path == ROUTE else 'inputs'}[1]`"
        )


def test_lengths_of_vectors(client: TestClient, library: dict[str, SentenceTransformer]) -> None:
    raw = library["raw"].encode(TEXTS)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(client, "raw", normalize=False), raw, atol=2e-5)
    np.testing.assert_allclose(vectors(client, "raw", normalize=True), unit, atol=2e-6)
    embed = {"model": "org/raw", "inputs": TEXTS}
    np.testing.assert_allclose(post(client, "/embed", embed), unit, atol=2e-6)
    np.testing.assert_allclose(post(client, "/embed", {**embed, "normalize": False}), raw, atol=2e-5)


def test_tei_similarity(client: TestClient, library: dict[str, SentenceTransformer]) -> None:
    model = library["prompted"]
    for name in (None, "query"):
        unit = model.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
        body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}, "prompt_name": name}
        found = post(client, "/similarity", {"model": "org/prompted", **body})
        np.testing.assert_allclose(found, unit[1:] @ unit[0], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"input": [1, 2, 3]}, "$.input[0]"),
        ({"input": [[1, 2], [3]]}, "$.input[0]"),
        ({"input": ["rain", [3]]}, "$.input[1]"),
        ({"input": ["rain", None]}, "$.input[1]"),
        ({"input": []}, "$.input"),
        ({"input": 5}, "$.input"),
        ({"input": "rain", "dimensions": 49}, "$.dimensions"),
        ({"input": "rain", "normalize": False}, "$.normalize"),
        ({"input": "rain", "truncate": "START"}, "$.truncate"),
        ({"input": "rain", "truncate": "MIDDLE"}, "$.truncate"),
        ({"input": "rain", "input_type": "nonsense"}, "$.input_type"),
        ({"input": "rain", "prompt_name": "law"}, "$.prompt_name"),
        ({"input": "rain", "prompt_name": "query", "input_type": "query"}, "$.prompt_name"),
        ({"input": "rain", "instruct": "Find."}, "$.instruct"),
        ({"input": "rain", "embedding_types": ["int8"]}, "$.embedding_types"),
        ({"input": "rain", "output_dtype": "binary"}, "$.output_dtype"),
        ({"input": "rain", "output_dimension": 49}, "$.output_dimension"),
        ({"input": "rain", "truncate_prompt_tokens": 5000}, "$.truncate_prompt_tokens"),
        ({"input": "rain", "late_chunking": True}, "$.late_chunking"),
        ({"input": [{"image": "x"}]}, "$.input[0]"),
        ({"messages": [], "input": "rain"}, "$.messages"),
        ({"input": "rain", "encoding_format": "hex"}, "$.encoding_format"),
        ({}, "input"),
    ],
)
def test_bad_input_names_the_field(client: TestClient, body: dict[str, Any], path: str) -> None:
    message = post(client, ROUTE, {"model": "org/plain", **body}, 400)["detail"]["message"]
    assert path in message and "$.params" not in message


@pytest.mark.parametrize("name", ["encoding_format", "input_type", "task"])
def test_an_empty_choice_is_none(client: TestClient, name: str) -> None:
    """Forms of tools without code send their empty fields."""
    body = {"model": "org/plain", "input": "rain"}
    assert post(client, ROUTE, {**body, name: ""})["data"] == post(client, ROUTE, body)["data"]


def test_token_ids_are_refused_with_a_reason(client: TestClient) -> None:
    message = post(client, ROUTE, {"model": "org/plain", "input": [[101, 102]]}, 400)["detail"]["message"]
    assert "token ids are not supported" in message


def test_an_unknown_model_is_a_404(client: TestClient) -> None:
    assert post(client, ROUTE, {"model": "text-embedding-3", "input": "x"}, 404)["code"] == "MODEL_NOT_FOUND"


def test_the_official_client(client: TestClient) -> None:
    """The `openai` package, if installed, requests base64 by default and decodes it."""
    openai = pytest.importorskip("openai")
    official = openai.OpenAI(
        base_url="http://testserver/v1", api_key="none", http_client=_http(openai, client)
    )
    for options in ({}, {"encoding_format": "float"}, {"dimensions": 8}):
        answer = official.embeddings.create(model="org/plain", input=TEXTS, **options)
        wanted = expected(client, dimensions=options.get("dimensions"))
        np.testing.assert_allclose([d.embedding for d in answer.data], wanted, atol=1e-6)
    with pytest.raises(openai.NotFoundError):
        official.embeddings.create(model="nothing", input="x")


def _http(openai: Any, client: TestClient) -> Any:
    """Return a client of the library's own HTTP package that sends every request to the application."""
    package = openai.DefaultHttpxClient.__mro__[1].__module__.split(".")[0]
    library = __import__(package)

    def answer(request: Any) -> Any:
        done = client.request(
            request.method, request.url.path, content=request.read(), headers=dict(request.headers)
        )
        return library.Response(
            done.status_code, content=done.content, headers={"content-type": "application/json"}
        )

    return library.Client(transport=library.MockTransport(answer))
