"""The page /docs in a real browser, and the examples that it offers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from support.checkpoints import cross_encoders
from support.servers import processes, programs
from support.servers.inprocess import asking
from support.servers.processes import Server

KEY = "docs-4f1e90b7c2d8"
ADMIN = "docs-admin-77b1e4a90c"
# No address of weights is right on every server, and this one serves no model with sparse vectors.
NOT_ANSWERED = {
    "/v1/admin/swap",
    "/v1/admin/adapters/load",
    "/v1/admin/adapters/unload",
    "/embed_all",  # which is always refused
    "/tei/embed_all",
    "/embed_sparse",
    "/tei/embed_sparse",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve with keys, below a prefix that a proxy keeps."""
    env = {"SIE_API_KEYS": f"web:infer:{KEY},ops:admin:{ADMIN}", "SIE_ROOT_PATH": "/sie"}
    with processes.running(tmp_path_factory.mktemp("docs"), env=env) as server:
        yield server


def test_the_page_renders_and_its_examples_run(guarded: Server) -> None:
    programs.npm()
    browser = programs.found("Chromium", *programs.CHROMIUM)
    env = {"PAGE": f"{guarded.base_url}/sie/docs/", "SIE_API_KEY": KEY, "CHROMIUM": browser}
    printed = programs.run("npm", "run", "test:docs", env=env)
    assert re.search("^# pass 1$", printed, re.M), printed


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and body of every example of the document."""
    for path, operations in document["paths"].items():
        if "post" not in operations:
            continue
        content = operations["post"]["requestBody"]["content"]["application/json"]
        examples = [each["value"] for each in content.get("examples", {}).values()]
        if "example" in content:
            examples.append(content["example"])
        assert examples, f"{path} offers no body"
        parameters = {each["name"]: each["example"] for each in operations["post"]["parameters"]}
        for body in examples:
            yield path.format(**parameters), body


def test_every_example_is_answered(guarded: Server) -> None:
    document = guarded.get("/openapi.json").json()
    headers = {"authorization": f"Bearer {ADMIN}"}
    answers = {
        (path, str(body)): guarded.post(path, body, headers=headers)
        for path, body in bodies(document)
        if path not in NOT_ANSWERED
    }
    wrong = {each: answer.text for each, answer in answers.items() if answer.status_code != 200}
    assert not wrong and len(answers) > 25


def test_addresses_are_relative(guarded: Server) -> None:
    """So the page works below any prefix, of a proxy that removes it and of one that keeps it."""
    for path, root in (("/docs", ""), ("/docs/", "../"), ("/sie/docs", ""), ("/sie/docs/", "../")):
        page = guarded.get(path).text
        addresses = re.findall(r'(?:href|src|data-document)="([^"]*)"', page)
        assert addresses == [
            f"{root}docs/static/swagger-ui.css",
            f"{root}openapi.json",
            f"{root}docs/static/swagger-ui-bundle.js",
        ], (path, addresses)
        for address in addresses:
            assert guarded.get(urljoin(path, address)).status_code == 200
    for path, root in (("/openapi.json", "./"), ("/sie/openapi.json", "./"), ("/openapi.json/", "../")):
        assert guarded.get(path).json()["servers"] == [{"url": root}]


def test_examples_name_the_model_that_is_served(tmp_path: Path) -> None:
    made = cross_encoders.make_cross_encoder(tmp_path / "model", "bert")
    with asking({"acme/ranker": made}) as client:
        assert (
            client.post("/v1/rerank", json={"query": "a", "documents": ["b"]}).status_code == 200
        )  # loads it
        document = client.get("/openapi.json").json()
        score = document["paths"]["/v1/score/{model}"]["post"]
        assert score["parameters"][0]["example"] == "acme/ranker"
        # a cross-encoder has no vectors, so that example names the model that comes with the server
        for path, body in bodies(document):
            if path.startswith(("/v1/score", "/v1/encode", "/v1/embeddings", "/v1/inspect")):
                assert client.post(path, json=body).status_code == 200, path
