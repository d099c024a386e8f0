"""Every relative link of the documentation resolves, and ARCHITECTURE.md lists every room of the server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "packages" / "sie-server" / "src" / "sie_server"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "packages/*/README.md",
        "bench/*.md",
        "training/*.md",
        "examples/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub generates from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", LINK.sub(lambda m: m[0].split("]")[0][1:], h)).lower() for h in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_room_is_on_the_architecture_page() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = {path.parent for path in SERVER.rglob("*.py") if path.parent != SERVER}
    rooms = {folder for folder in folders if any(file.stem != "__init__" for file in folder.glob("*.py"))}
    missing = [room for room in sorted(rooms) if f"({room.relative_to(ROOT)})" not in page]
    assert not missing, [str(room.relative_to(SERVER)) for room in missing]


def test_no_folder_of_code_has_more_than_ten_files() -> None:
    folders = {path.parent for path in SERVER.rglob("*.py")}
    counts = {folder: sum(1 for file in folder.iterdir() if file.is_file()) for folder in folders}
    crowded = {str(folder.relative_to(SERVER)): n for folder, n in counts.items() if n > 10}
    assert not crowded
