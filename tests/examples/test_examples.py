"""The examples produce the results that their READMEs state, against a real server."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import two_stage
from nbclient import NotebookClient
from rich.console import Console

import demo
from sie_sdk import Item, SIEClient
from support.servers import programs
from support.servers.processes import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = [json.loads(line) for line in (EXAMPLES / "demo/queries.jsonl").read_text().splitlines()]
PASSAGES = [json.loads(line) for line in (EXAMPLES / "demo/corpus.jsonl").read_text().splitlines()]


def run(script: str, *args: str) -> list[str]:
    """Return the lines that a script prints."""
    command = [sys.executable, str(EXAMPLES / script), *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def stored(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a database with all passages: encoding them takes seconds."""
    path = str(tmp_path_factory.mktemp("database") / "passages.db")
    with SIEClient(server.base_url) as client:
        two_stage.add(two_stage.open_database(path), client, PASSAGES)
    return path


@pytest.mark.parametrize("in_full", [3, 100])
def test_the_demo_shows_some_queries_and_a_summary_of_all(server: Server, in_full: int) -> None:
    printed = io.StringIO()
    with SIEClient(server.base_url) as client:
        demo.show(Console(file=printed, width=120), client, top=2, in_full=in_full)
    text = printed.getvalue()
    shown = [f"“{query['text']}”" in text for query in DEMO]
    assert shown == [number < in_full for number in range(len(DEMO))]
    assert re.search(rf"Over these {len(DEMO)} queries.*reranked\s+6 of {len(DEMO)}", text, re.S)
    assert len(demo.introduction()) < 120 and "\n" not in demo.introduction()
    assert "sie-server serve" in demo.next_steps() and "score --query" in demo.next_steps()


def test_two_stages_find_relevant_passages_and_rank_them_first(server: Server, stored: str) -> None:
    database = two_stage.open_database(stored)
    places = []
    with SIEClient(server.base_url) as client:
        for query in DEMO:
            found = two_stage.search(database, client, query["text"], 20)
            assert set(query["relevant"]) <= {hit.id for hit in found}
            reranked = two_stage.rerank(client, query["text"], found)
            assert sorted(hit.id for hit in reranked) == sorted(hit.id for hit in found)
            places.append(min(rank for rank, hit in enumerate(reranked, 1) if hit.id in query["relevant"]))
    assert len(places) == 13 and max(places) == 2
    assert places.count(1) == 6  # as stated in its README


def test_the_database_finds_the_nearest(server: Server, tmp_path: Path) -> None:
    """The hits equal those of numpy over all vectors, and stored passages are not encoded again."""
    path, text = str(tmp_path / "passages.db"), DEMO[0]["text"]
    with SIEClient(server.base_url) as client:
        two_stage.add(two_stage.open_database(path), client, PASSAGES[:10])
        database = two_stage.open_database(path)
        two_stage.add(database, client, PASSAGES)
        items = [Item(text=f"{one['title']}. {one['text']}") for one in PASSAGES]
        vectors = np.stack([r["dense"] for r in client.encode(two_stage.ENCODER, items, is_query=False)])
        cosines = vectors @ client.encode(two_stage.ENCODER, Item(text=text), is_query=True)["dense"]
        before = server.metric("sie_requests_total", route="encode", model=two_stage.ENCODER, status="200")
        two_stage.add(database, client, PASSAGES)
        after = server.metric("sie_requests_total", route="encode", model=two_stage.ENCODER, status="200")
        found = two_stage.search(database, client, text, 5)
    assert before == after > 0
    best = np.argsort(-cosines)[:5]
    assert [hit.id for hit in found] == [PASSAGES[i]["id"] for i in best]
    assert [hit.score for hit in found] == pytest.approx(cosines[best].tolist(), abs=1e-5)


def test_two_stages_as_a_program(server: Server, stored: str) -> None:
    query = "feeling awake at night after a long flight"  # the query of its README
    assert query in (EXAMPLES / "two-stage/README.md").read_text()
    lines = run("two-stage/two_stage.py", query, "--url", server.base_url, "--database", stored, "--top", "3")
    assert len(lines) == 3
    assert re.fullmatch(r"1\. \d\.\d{3}  Coping with jet lag  \(was \d+\)", lines[0])


@pytest.fixture(scope="module")
def folder() -> Path:
    """Return the folder of the two-stage example, with the TypeScript program built."""
    folder, npm = EXAMPLES / "two-stage", programs.npm()
    if not (folder / "node_modules").is_dir():
        programs.missing("examples/two-stage has no node_modules (make installs them)")
    programs.run(npm, "run", "build", cwd=folder)
    return folder


@pytest.mark.parametrize("order", ["python typescript", "typescript python"])
def test_two_stages_in_typescript(server: Server, folder: Path, tmp_path: Path, order: str) -> None:
    """It prints the same as the Python program, and each can use the other's database."""

    def encoded() -> float:
        return server.metric("sie_requests_total", route="encode", model=two_stage.ENCODER, status="200")

    args = [DEMO[0]["text"], "--url", server.base_url, "--database", str(tmp_path / "passages.db")]
    halves = {
        "python": lambda: run("two-stage/two_stage.py", *args),
        "typescript": lambda: programs.run("node", "build/two_stage.js", *args, cwd=folder).splitlines(),
    }
    before = encoded()
    lines = [halves[half]() for half in order.split()]
    assert lines[0] == lines[1] and len(lines[0]) == 5
    assert encoded() == before + 3  # the passages once, and two queries


@pytest.mark.parametrize(
    ("question", "answer", "article"),
    [
        ("How soon must a fire be reported?", "within two hours", "Article 11. Reporting of incidents"),
        ("How long must measurements be kept?", "five years", "Article 13. Records"),
        ("What is the fine for not reporting?", "50,000 crowns", "Article 15. Penalties and appeal"),
        ("What happens to a module that was under water?", "taken out of service at once", "Article 9."),
    ],
)
def test_citations_answer_and_can_be_checked(
    server: Server, question: str, answer: str, article: str
) -> None:
    lines = run("regulatory-rag/cite.py", question, "--url", server.base_url)
    found = [
        re.fullmatch(r"-?\d\.\d{3}  \[\d\] (.+) \((.+\.txt), characters (\d+)–(\d+)\): “(.+)”", line)
        for line in lines
    ]
    assert len(found) == 3
    texts = []
    for match in found:
        assert match is not None
        heading, file, start, end, quotation = match.groups()
        text = (EXAMPLES / "regulatory-rag/regulation" / file).read_text(encoding="utf-8")
        assert text[int(start) : int(end)] == quotation
        assert re.findall(r"^Article .*$", text[: int(start)], re.MULTILINE)[-1] == heading
        texts.append((heading, quotation))
    assert any(heading.startswith(article) and answer in quotation for heading, quotation in texts)


def test_the_prompt_quotes_and_asks(server: Server) -> None:
    lines = run(
        "regulatory-rag/cite.py", "How long must measurements be kept?", "--prompt", "--url", server.base_url
    )
    assert lines[-1] == "Question: How long must measurements be kept?"
    assert [line[:3] for line in lines if line.startswith("[")] == ["[1]", "[2]", "[3]"]
    assert any("are kept for five years" in line for line in lines)


def test_the_notebook_prints_the_outputs_it_shows(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIE_BASE_URL", server.base_url)
    path = EXAMPLES / "notebooks/rerank.ipynb"
    shown, again = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in again.cells:
        cell.pop("outputs", None)
    NotebookClient(again, timeout=120, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()

    def texts(notebook: nbformat.NotebookNode) -> list[str]:
        # joined, because a kernel on a busy machine may send one print in several pieces
        printed = [
            "".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells
        ]
        return [text for text in printed if text]

    assert len(texts(shown)) >= 5
    assert texts(again) == texts(shown)
