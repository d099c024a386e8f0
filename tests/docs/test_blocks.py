"""Every block of every page: run here, run by another test, checked, read as data, or shown output.

A block that no rule below knows fails `test_every_block_has_a_rule`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sie_server.catalog import CatalogEntry, catalog
from sie_server.catalog.directory import completed
from sie_server.rankings.inputs import read_inputs
from support.docs.commands import faults, typed
from support.docs.pages import Block, blocks
from support.servers.processes import Server

ROOT = Path(__file__).parents[2]
OUTSIDE = ("*.md", "packages/*/README.md", "examples/*/README.md", "bench/*.md", "training/*.md")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in (*OUTSIDE, "docs/**/*.md")
    for path in sorted(ROOT.glob(pattern))
}
BLOCKS = [(page, block) for page, text in PAGES.items() for block in blocks(text)]
NAMED = [pytest.param(page, block, id=f"{page}:{block.line}") for page, block in BLOCKS]

# (page, language) → the test that runs the blocks
ELSEWHERE = {
    ("docs/dialects.md", "python"): "tests/integrations/test_dialect_docs.py",
    ("docs/http-api.md", "bash"): "tests/service/test_http_api_docs.py",
    ("docs/http-api.md", "python"): "tests/service/test_http_api_docs.py",
    ("docs/http-api.md", "json"): "tests/service/test_http_api_docs.py",
    ("docs/http-api.md", "http"): "tests/service/test_http_api_docs.py",
    ("docs/http-api.md", "text"): "tests/service/test_http_api_docs.py",
    ("packages/sie-sdk/README.md", "python"): "tests/unit/sdk/test_package.py",
    ("packages/sie-ts-sdk/README.md", "typescript"): "tests/service/test_typescript.py",
    **{
        (f"packages/sie-{name}/README.md", "python"): "tests/integrations/frameworks/test_packages.py"
        for name in ("langchain", "llamaindex", "haystack")
    },
}
# commands that are run; the first word, or the first two
RUN = ("sie-server score", "sie-server eval", "sie-server calibrate", "curl", "printf")
# pages whose commands need weights from the hub, admins, GPUs or a cloud; their commands are checked
CHECKED_ONLY = re.compile(
    r"docs/(deploy/.*|adapters|cluster|encode|integrations|operating|security|releasing|cascades)\.md|.*README\.md"
)
NEEDS_DATA = "data/eval/"  # collections that are no part of the repository
SHELL = ("bash", "console", "")
Read = Callable[[str], Any]
DATA: dict[str, Read] = {
    "json": lambda text: [json.loads(line) for line in _documents(text)],
    "yaml": yaml.safe_load,
    "toml": lambda text: tomllib.loads(text.replace("…", "0")),
}


def _documents(text: str) -> list[str]:
    """Return one JSON text, or the lines of JSON lines."""
    lines = text.strip().splitlines()
    return lines if all(line.startswith("{") and line.endswith("}") for line in lines) else [text]


def commands_to_run(page: str, block: Block) -> str:
    """Return the commands of a block that are run here, perhaps none."""
    if block.language != "bash" or NEEDS_DATA in block.text or (page, "bash") in ELSEWHERE:
        return ""
    if CHECKED_ONLY.fullmatch(page) and page != "README.md":
        return ""
    lines = re.split(r"(?<!\\)\n", block.text.strip())
    return "\n".join(line for line in lines if line.startswith(RUN))


def rule_of(page: str, block: Block) -> str | None:
    """Return how a block is tested, None if no rule applies."""
    if (page, block.language) in ELSEWHERE:
        return "run by another test"
    if block.language == "python" or commands_to_run(page, block):
        return "run here"
    if block.language in ("bash", "console"):
        return "commands checked"
    if block.language in DATA:
        return "read as data"
    if block.language in ("text", "", "nginx", "dockerfile"):
        return "shown, not run"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_commands_refer_to_options_files_and_targets_that_exist(page: str) -> None:
    assert faults(PAGES[page]) == []


def test_every_block_has_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    rules = Counter(rule_of(page, block) for page, block in BLOCKS)
    unknown = [
        f"{page}:{block.line} {block.language}" for page, block in BLOCKS if rule_of(page, block) is None
    ]
    assert not unknown
    run = sum(count for rule, count in rules.items() if rule and rule.startswith("run"))
    with capsys.disabled():
        parts = ", ".join(f"{count} {rule}" for rule, count in rules.most_common())
        print(f"\n{len(BLOCKS)} code blocks on {len(PAGES)} pages, {run} run: {parts}")
    assert run >= 60 and set(ELSEWHERE.values()) <= {
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")
    }


@pytest.mark.parametrize(("page", "block"), [each for each in NAMED if each.values[1].language in DATA])  # type: ignore[union-attr]
def test_data_can_be_read(page: str, block: Block) -> None:
    if (page, block.language) not in ELSEWHERE:
        assert DATA[block.language](block.text)


def real(text: str, server: Server) -> str:
    return text.replace("http://localhost:8080", server.base_url).replace(
        "localhost:8080", server.base_url[7:]
    )


SCRIPTS = [each for each in NAMED if commands_to_run(*each.values)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("page", "block"), SCRIPTS)
def test_commands_run(page: str, block: Block, server: Server, models: Path, workspace: Path) -> None:
    script = real(commands_to_run(page, block), server).replace("/models", str(models))
    # the commands of the environment that runs the tests, which may not be activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "SIE_MODELS_DIR": str(models), "SIE_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=workspace,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    assert done.stdout + done.stderr and '"error"' not in done.stdout


PROGRAMS = [
    each
    for each in NAMED
    if each.values[1].language == "python" and (each.values[0], "python") not in ELSEWHERE  # type: ignore[union-attr]
]


@pytest.mark.parametrize(("page", "block"), PROGRAMS)
def test_programs_run(
    page: str, block: Block, server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(real(block.text, server), page, "exec"), names)  # noqa: S102  our own documentation
    if "client" in names:
        names["client"].close()


def test_the_lists_of_candidates_on_the_page_are_read(workspace: Path, tmp_path: Path) -> None:
    [block] = [block for block in blocks(PAGES["docs/offline.md"]) if block.language == "json"]
    (tmp_path / "c.jsonl").write_text(block.text)
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "a"}\n{"id": "q2", "text": "b"}\n')
    inputs = read_inputs(tmp_path / "q.jsonl", workspace / "documents.jsonl", tmp_path / "c.jsonl", None)
    assert list(inputs.ranked["q1"]) == ["a", "b"] and inputs.texts("q1")[1] == "Rain tomorrow."
    assert list(inputs.ranked["q2"]) == ["d7", "d12"]


def test_the_entry_of_a_model_on_the_page_is_valid() -> None:
    whole, *additions = [block for block in blocks(PAGES["docs/operating.md"]) if block.language == "yaml"]
    assert msgspec.yaml.decode(whole.text, type=CatalogEntry).id == "acme/contracts"
    additions += [block for block in blocks(PAGES["docs/migrate.md"]) if block.language == "yaml"]
    assert len(additions) == 2
    for block in additions:
        content = yaml.safe_load(block.text)
        entry = msgspec.convert(completed(content, catalog()), CatalogEntry)
        assert entry.source == content["id"] and entry.aliases == ("rerank-v3.5",)


def test_shown_commands_are_found_in_a_console_block() -> None:
    block = Block("console", "$ make demo  # it\nReranks\n$ sie-server \\\n    serve\nready\n", 1)
    assert typed(block) == "make demo  # it\nsie-server \\\n    serve\n"
