"""The parts of the documentation site: navigation, reference of the TypeScript client, check of links, messages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from support.docs.pages import rows, section

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/site"))

import check  # noqa: E402
import typescript  # noqa: E402

SOURCE = ROOT / "packages/sie-ts-sdk/src"
TROUBLES = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")


def test_the_reference_has_every_name_that_the_typescript_client_exports() -> None:
    index = (SOURCE / "index.ts").read_text()
    page = typescript.reference(SOURCE)
    headings = set(re.findall(r"^### (\w+)$", page, re.MULTILINE))
    listed = re.sub(
        r"type \w+ =|type \*|export|from [^;]*;", "", re.sub(r"/\*.*?\*/", "", index, flags=re.DOTALL)
    )
    named = set(re.findall(r"\b[A-Za-z]\w+\b", listed)) - {"type"}
    types = set(
        re.findall(r"^export (?:interface|type) (\w+)", (SOURCE / "types.ts").read_text(), re.MULTILINE)
    )
    assert len(named) > 18 and len(types) > 10 and headings == named | types
    assert "#run" not in page and "this.#" not in page  # neither private members nor bodies
    assert "async score(model: string, query: Item" in page and "readonly retryable: boolean;" in page


def test_a_class_is_shown_without_bodies_and_private_members(tmp_path: Path) -> None:
    text = (
        "/** A thing. Shapes are [a, b]. */\nexport class Thing {\n  #secret = 1;\n  /** Its name. */\n"
        '  readonly name: string = "x;{";\n  run(a: { b: number }): void {\n    if (a) { this.#secret; }\n  }\n}\n'
    )
    (tmp_path / "x.ts").write_text(text)
    [found] = typescript.declarations(tmp_path / "x.ts")
    assert found.comment == r"A thing. Shapes are \[a, b\]."
    assert found.text == (
        "export class Thing {\n  /** Its name. */\n  readonly name: string;\n  run(a: { b: number }): void;\n}"
    )


def test_broken_links_and_files_of_other_hosts_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text('<a href="a/#there"></a><a href="a/#gone"></a><a href="b/"></a>')
    (tmp_path / "a/index.html").write_text(
        '<h1 id="there"></h1><a href="https://example.com/"></a><script src="https://example.com/x.js"></script>'
    )
    assert check.faults(tmp_path) == [
        "a/index.html: loads https://example.com/x.js",
        "index.html: a/#gone names no place on that page",
        "index.html: b/ leads nowhere",
    ]


def test_every_page_of_the_navigation_exists() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    hooks = (ROOT / "scripts/site/hooks.py").read_text()
    pages = set(re.findall(r"(?<=: )[\w/-]+\.md$", text, re.MULTILINE))
    assert len(pages) > 40
    assert not [page for page in pages if not (ROOT / "docs" / page).exists() and f'"{page}"' not in hooks]


MESSAGES = [
    row[0].strip("`")
    for row in rows(TROUBLES)
    if row[0].startswith("`") and row[0] != "`truncated` in the answer"
]


@pytest.fixture(scope="module")
def code() -> str:
    """Return all code that writes messages, with the pieces of each text joined."""
    files = [
        *ROOT.glob("packages/*/src/**/*.py"),
        *ROOT.glob("packages/*/src/**/*.ts"),
        *ROOT.glob("scripts/*.py"),
    ]
    return re.sub(r"\"\s*\n\s*f?\"", "", "\n".join(path.read_text(encoding="utf-8") for path in files))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_exists(message: str, code: str) -> None:
    parts = [part.strip() for part in message.split("…") if part.strip()]
    assert parts and [part for part in parts if part not in code] == []


def test_the_page_lists_messages_of_every_kind() -> None:
    assert len(MESSAGES) > 20
    assert all(len(rows(section(TROUBLES, name))) >= 2 for name in ("Models", "Requests", "Clients"))
