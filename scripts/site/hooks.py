"""Hooks of MkDocs: pages from outside docs/, references of the clients, and links between all of them.

Links to files that are no pages lead to SIE_SITE_REPOSITORY (https://HOST/OWNER/REPOSITORY) if this variable is set;
otherwise their text remains without a link.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import typescript

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = os.environ.get("SIE_SITE_REPOSITORY", "").rstrip("/")
PAGES = {  # file in the repository → page
    "README.md": "index.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "bench/README.md": "project/benchmarks.md",
    "training/README.md": "project/training.md",
    "packages/sie-sdk/README.md": "clients/python.md",
    "packages/sie-ts-sdk/README.md": "clients/typescript.md",
    "packages/sie-langchain/README.md": "clients/langchain.md",
    "packages/sie-llamaindex/README.md": "clients/llamaindex.md",
    "packages/sie-haystack/README.md": "clients/haystack.md",
    "packages/sie-kernels/README.md": "project/kernels.md",
    "examples/two-stage/README.md": "examples/two-stage.md",
    "examples/regulatory-rag/README.md": "examples/regulatory-rag.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
FOLDERS = {posixpath.dirname(source): page for source, page in PAGES.items() if posixpath.dirname(source)}
OTHER_NAMES = {"docs/README.md": "index.md", "docs": "index.md", "docs/deploy": "deploy/README.md"} | FOLDERS
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+)( .+)$", re.MULTILINE)
# of pages and folders in the search: a message is found in its row, and pages of the project come last
WEIGHTS = {"troubleshooting.md": 8, "project": 0.2}
EMPTY_HEADER = re.compile(r"<th([^>]*)></th>")
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Add the pages of docs/ that the navigation does not name yet, so that none is lost."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    if others := [page for page in pages if page not in named and page != "README.md"]:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/ and the references."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    pages = {
        "reference/python.md": python_reference(),
        "reference/evaluation.md": evaluation_reference(),
        "reference/typescript.md": typescript.reference(ROOT / "packages/sie-ts-sdk/src"),
    }
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Make the empty corner of a table a cell without content; an empty header has no meaning for screen readers."""
    return EMPTY_HEADER.sub(r"<td\1></td>", html)


def python_reference() -> str:
    """Return the page of the Python client: every public name, from its docstring."""
    module = ast.parse((ROOT / "packages/sie-sdk/src/sie_sdk/__init__.py").read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    public = [name for name in names if not name.startswith("__")]
    first = ["SIEClient", "SIEAsyncClient"]
    errors = [name for name in public if name.endswith("Error")]
    others = [name for name in public if name not in (*first, *errors)]
    guide = "[The guide](../clients/python.md) shows how it is used."
    head = f"# Python client\n\nEvery public name of `sie_sdk`. {guide}\n"
    return head + "".join(f"\n::: sie_sdk.{name}\n" for name in (*first, *others, *errors))


def evaluation_reference() -> str:
    """Return the page of `sie_server.eval`, for notebooks."""
    head = "# Python: evaluation\n\n[Evaluate](../evaluate.md) describes data, figures and files.\n"
    return head + "".join(
        f"\n::: sie_server.eval.{name}\n" for name in ("evaluate", "load", "Report", "Collection")
    )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the pages of the site; code stays as it is."""
    uri = page.file.src_uri
    if weight := WEIGHTS.get(uri.partition("/")[0]):
        page.meta["search"] = {"boost": weight}
    source = SOURCES.get(uri, f"docs/{uri}")

    def replaced(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        target = resolved(link, source, uri)
        return text if target is None else f"[{text}]({target})"

    parts = FENCE.split(markdown)
    levels: list[tuple[int, int]] = []

    def heading(match: re.Match[str]) -> str:
        return "#" * _level(len(match[1]), levels) + match[2]

    return "".join(
        part if part.startswith("```") else HEADING.sub(heading, LINK.sub(replaced, part)) for part in parts
    )


def _level(written: int, above: list[tuple[int, int]]) -> int:
    """Return a heading's level without gaps, which screen readers would announce; `above` are the open headings."""
    while above and above[-1][0] >= written:
        above.pop()
    level = above[-1][1] + 1 if above else 1
    above.append((written, level))
    return level


def on_post_page(output: str, **_: Any) -> str:
    """Name the search dialog, which the theme does not."""
    return output.replace('<div class="md-search" ', '<div class="md-search" aria-label="Search" ')


def resolved(link: str, source: str, uri: str) -> str | None:
    """Return the link from the page `uri`, made of the repository's file `source`; None: there is no such page."""
    if re.match(r"[a-z]+:|#", link) or source.startswith("docs/reference/"):
        return link
    path, mark, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    name = PAGES.get(target) or OTHER_NAMES.get(target)
    if name is None and target.startswith("docs/") and (ROOT / target).is_file():
        name = target.removeprefix("docs/")
    if name is not None:
        return posixpath.relpath(name, posixpath.dirname(uri)) + mark + anchor
    return f"{REPOSITORY}/blob/HEAD/{target}{mark}{anchor}" if REPOSITORY else None
