"""`POST /v1/embeddings` answers as OpenAI's clients expect."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from support.checkpoints.encoders import make_encoder
from support.servers.inprocess import asking, post

TEXTS = ["rain falls", "", "stars burn hydrogen"]
ROUTE = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root: Path = tmp_path_factory.mktemp("openai")
    prompts = {"prompts": {"query": "stars: ", "document": "rain: "}}
    with asking(
        {
            "org/plain": make_encoder(root / "plain"),
            "prompted": make_encoder(root / "prompted", prompts=prompts),
        }
    ) as client:
        yield client


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


def test_texts_are_documents(client: TestClient) -> None:
    answer = post(client, ROUTE, {"model": "prompted", "input": TEXTS})
    ours = np.array([d["embedding"] for d in answer["data"]])
    np.testing.assert_allclose(ours, expected(client, "prompted", is_query=False), atol=1e-6)
    assert np.abs(ours - expected(client, "prompted", is_query=True)).max() > 0.01


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
        ({"input": "rain", "dimensions": 0}, "$.dimensions"),
        ({"input": "rain", "encoding_format": "hex"}, "$.encoding_format"),
        ({}, "input"),
    ],
)
def test_bad_input_names_the_field(client: TestClient, body: dict[str, Any], path: str) -> None:
    message = post(client, ROUTE, {"model": "org/plain", **body}, 400)["detail"]["message"]
    assert path in message and "$.params" not in message


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
