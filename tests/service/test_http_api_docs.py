"""Every example of docs/http-api.md runs against a real server and prints the shown output.

The examples run once, in the order of the page, because the admin routes change the server. An example is a fenced
block of bash or Python, and its output is the block after it. Times and sizes may differ, scores in the last digits.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import transformers

from support.checkpoints import cross_encoders
from support.checkpoints.colbert import make_stanford
from support.conformance.switch import clustered
from support.docs.pages import DOCS, Block, blocks, code, rows, section
from support.families.adapters import make_adapter
from support.servers import processes, programs
from support.servers.processes import Server

PAGE = (DOCS / "http-api.md").read_text(encoding="utf-8")
PAIRS = [(one, after) for one, after in pairwise(blocks(PAGE)) if one.language in ("bash", "python")]
# only types are compared of these fields, and of scores of acme/contracts, whose weights are random
FREE = {"memory_bytes", "seconds", "timing", "created"}
FREE_IF_RANDOM = {"score", "input_tokens"}
FREE_HEADERS = {"date", "content-length", "x-sie-request-id", "x-sie-server-version"}
HEADERS = {code(row[0]).lower() for row in rows(section(PAGE, "Response headers"))}
OF_A_CLUSTER = {"server", "x-request-id"} if clustered() else set()  # Serve sends them
BY_THE_HTTP_LIBRARY = {"date", "content-length"}


@dataclass
class Place:
    """A server, and the directory that the page calls /models."""

    server: Server
    models: Path

    def real(self, text: str) -> str:
        if self.server.admin_key:  # the page shows the answers to an admin
            text = text.replace("curl ", f"curl -H 'Authorization: Bearer {self.server.admin_key}' ")
        return text.replace("http://localhost:8080", self.server.base_url).replace(
            '"/models/', f'"{self.models}/'
        )

    def shown(self, text: str) -> str:
        return text.replace(f'"{self.models}/', '"/models/')


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("models")
    first = cross_encoders.make_cross_encoder(root / "contracts-v1", "bert")
    cross_encoders.make_cross_encoder(root / "contracts-v2", "bert", seed=1)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(first)
    make_adapter(base, root / "contracts-laws", r=4, target_modules=["query", "value"])
    colbert = make_stanford(root / "colbert", "bert", None)
    models = ["--model=sie/mini-en", f"--model=colbert-ir/colbertv2.0={colbert}"]
    args = [*models, "--dtype=float32", "--batch-tokens=2048", f"--source-roots={root}"]
    with processes.running(tmp_path_factory.mktemp("server"), *args) as server:
        yield Place(server, root)


@pytest.fixture(scope="module")
def outputs(place: Place) -> list[str]:
    """Return the output of each example."""
    programs.found("curl", "curl")
    return [place.shown(output_of(block, place)) for block, _ in PAIRS]


def output_of(block: Block, place: Place) -> str:
    if block.language == "bash":
        command = ["bash", "-c", place.real(block.text)]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, encoding="utf-8").stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(place.real(block.text), "docs/http-api.md", "exec"), {})  # noqa: S102 - our own documentation
    return printed.getvalue()


@pytest.mark.parametrize("index", range(len(PAIRS)), ids=lambda i: f"line-{PAIRS[i][0].line}")
def test_an_example_prints_the_shown_output(outputs: list[str], index: int) -> None:
    after, output = PAIRS[index][1], outputs[index]
    if after.language == "json":
        answer = json.loads(output)
        if clustered() and "replicas" in answer:  # of an admin call: docs/cluster.md
            del answer["replicas"]
        compare(json.loads(after.text), answer)
    elif after.language == "http":
        shown, real = parse(after.text), parse(output)
        for name in OF_A_CLUSTER:
            real[1].pop(name, None)
        assert shown[0] == real[0]
        assert list(shown[1]) == list(real[1])
        fixed = shown[1].keys() - FREE_HEADERS
        assert {name: shown[1][name] for name in fixed} == {name: real[1][name] for name in fixed}
        compare(shown[2], real[2])
    else:
        assert after.language == "text", f"line {after.line}: an example without its output"
        assert output.strip() == after.text.strip()


def parse(response: str) -> tuple[str, dict[str, str], Any]:
    """Return status line, headers and body from the output of `curl -i`."""
    head, _, body = response.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.splitlines()
    return status, dict(line.split(": ", 1) for line in lines), json.loads(body)


def compare(shown: Any, real: Any) -> None:
    """Compare keys, their order and types, and the values except those of `FREE` fields."""
    is_random = isinstance(shown, dict) and str(shown.get("model")).startswith("acme/")
    compare_at("$", shown, real, FREE | (FREE_IF_RANDOM if is_random else set()))


def compare_at(path: str, shown: Any, real: Any, free: set[str]) -> None:
    difference = f"{path}: the page shows {shown!r}, the server sent {real!r}"
    assert type(shown) is type(real), difference
    if isinstance(shown, dict):
        assert list(shown) == list(real), (
            f"{path}: the page has the keys {list(shown)}, the server {list(real)}"
        )
        for name, value in shown.items():
            compare_at(f"{path}.{name}", value, real[name], free)
    elif isinstance(shown, list):
        assert len(shown) == len(real), difference
        for i, (one, other) in enumerate(zip(shown, real, strict=True)):
            compare_at(f"{path}[{i}]", one, other, free)
    elif not free & set(re.findall(r"\w+", path)):
        assert shown == (pytest.approx(real, abs=0.01) if isinstance(shown, float) else real), difference


def test_all_examples_have_an_output_and_all_outputs_an_example() -> None:
    languages = [block.language for block in blocks(PAGE)]
    assert languages == [each for one, after in PAIRS for each in (one.language, after.language)]
    commands = "\n".join(block.text for block, _ in PAIRS)
    needed = [
        "score",
        "inspect",
        "encode",
        "embeddings",
        "models",
        "admin/load",
        "admin/swap",
        "admin/unload",
    ]
    for path in [*needed, "admin/adapters/load", "admin/adapters/unload"]:
        assert f"/v1/{path}" in commands


def test_every_header_of_a_response_is_on_the_page(place: Place) -> None:
    """This includes headers that libraries add, which the code does not name."""
    server, score = place.server, "/v1/score/sie/mini-en"
    body = {"query": {"text": "rain"}, "items": [{"text": "rain falls"}]}
    rerank = {"model": "sie/mini-en", "query": "rain", "documents": ["rain falls"], "unknown": 1}
    sent = [
        server.post(score, body),
        server.post("/v1/rerank", rerank),
        server.post("/v1/embeddings", {"model": "sie/mini-en", "input": "rain"}),
        server.post("/v1/admin/load", {"model": "sie/mini-en"}),
        *(server.post(path, b"") for path in (score, "/rerank", "/v1/admin/load", "/nowhere")),
        *(server.get(path) for path in ("/v1/models", "/readyz", "/metrics", "/docs", "/openapi.json", score, "/info")),
    ]  # fmt: skip
    found = {name.lower() for response in sent for name in response.headers}
    assert found - HEADERS - OF_A_CLUSTER == BY_THE_HTTP_LIBRARY
    assert {"x-total-time", "x-sie-warnings", "x-sie-error-code", "allow"} <= found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"rank": 0', '"rank": "0"', "$.scores[0].rank: the page shows '0'"),
        ('"score": 1.17094', '"score": 1.2', "$.scores[0].score: the page shows 1.2"),
        ('"score_type": "maxsim"', '"score_type": "cosine"', "$.score_type: the page shows 'cosine'"),
        ('"query_id": "q1",', "", "$: the page has the keys"),
    ],
)
def test_a_wrong_output_is_named(outputs: list[str], old: str, new: str, problem: str) -> None:
    shown = PAIRS[0][1].text
    assert old in shown
    with pytest.raises(AssertionError, match=re.escape(problem)):
        compare(json.loads(shown.replace(old, new)), json.loads(outputs[0]))
