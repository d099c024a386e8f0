"""The samples of the product's documentation (tests/service/samples) run unchanged against a real server.

Only the address is replaced. The TypeScript samples are in packages/sie-ts-sdk/test/samples.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.servers import programs
from support.servers.processes import Server

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str, server: Server) -> str:
    text = (SAMPLES / name).read_text(encoding="utf-8")
    return text.replace("http://localhost:8080", server.base_url)


def run(server: Server, *names: str, **given: Any) -> dict[str, Any]:
    """Run samples one after the other, and return the names that they define; `given` are names that they expect."""
    for name in names:
        exec(compile(sample(name, server), name, "exec"), given)  # noqa: S102  our own files
    given["client"].close()
    return given


def test_the_first_one(documented: Server, capsys: pytest.CaptureFixture[str]) -> None:
    run(documented, "rerank.py")
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"0\.\d{3}$", "", line) for line in lines] == ["Rank 0: ", "Rank 1: ", "Rank 2: "]


def test_two_stages(documented: Server) -> None:
    docs = [{"text": f"text number {i}"} for i in range(100)]
    left = run(documented, "rerank.py", "two_stages.py", top_100_docs=docs)
    assert left["query_embedding"]["dense"].shape == (48,)
    assert len(set(left["top_10_ids"])) == 10 and set(left["top_10_ids"]) <= {f"doc-{i}" for i in range(100)}


def test_ids(documented: Server, capsys: pytest.CaptureFixture[str]) -> None:
    run(documented, "rerank.py", "ids.py")
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [re.sub(r"doc-\d: (rank=\d), score=0\.\d{3}", r"\1", line) for line in lines] == [
        f"rank={rank}" for rank in range(3)
    ]


def test_the_glossary(documented: Server) -> None:
    candidates = [SimpleNamespace(text=f"clause number {i}") for i in range(100)]
    database = SimpleNamespace(search=lambda vector, top_k: candidates[:top_k])
    left = run(documented, "glossary.py", vector_db=database, query_vector=None)
    best = [int(entry["item_id"]) for entry in left["score_result"]["scores"][:10]]
    assert left["results"] == [candidates[i] for i in best]


def test_curl(documented: Server) -> None:
    programs.found("curl", "curl")
    command = ["bash", "-c", sample("score.sh", documented)]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    texts = ["Machine learning uses algorithms to learn from data.", "The weather is sunny today."]
    expected = documented.score("BAAI/bge-reranker-v2-m3", "What is machine learning?", texts)
    assert json.loads(printed) == expected
