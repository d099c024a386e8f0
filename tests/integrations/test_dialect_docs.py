"""Every Python block of docs/dialects.md runs unchanged against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.requests.questions import KEY
from support.servers import processes
from support.servers.processes import Server

PAGE = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text(encoding="utf-8")
SETUP, *BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with processes.running(tmp_path_factory.mktemp("docs")) as server:
        yield server


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[1])
def test_a_block_finds_the_best_document(embedded: Server, block: str) -> None:
    prelude, *calls = re.split(r"^(?=best = )", block, flags=re.MULTILINE)
    for call in calls:
        names: dict[str, object] = {}
        code = (SETUP + prelude + call).replace("http://localhost:8080", embedded.base_url)
        code = code.replace('"KEY"', repr(KEY))
        exec(code, names)  # noqa: S102 - our own documentation
        assert names["best"] == 1, call


def test_the_page_has_the_blocks_it_promises() -> None:
    assert len(BLOCKS) >= 9 and PAGE.count("litellm.rerank(") == 7


def test_every_path_of_the_page_exists(embedded: Server) -> None:
    paths = set(embedded.get("/openapi.json").json()["paths"])
    named = set(re.findall(r"`(/(?:v\d/)?(?:rerank|ranking|score|embed|info))`", PAGE))
    assert len(named) >= 8 and named <= paths
    for prefix in re.findall(r"`(/(?:cohere|jina|voyage|infinity|tei|nim|vllm))`", PAGE):
        assert any(path.startswith(f"{prefix}/") for path in paths)
