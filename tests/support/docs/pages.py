"""Read pages of docs/: sections, table rows, fenced blocks."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[3] / "docs"


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    line: int


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level; empty if there is none."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", page, re.MULTILINE)
    if found is None:
        return ""
    rest = page[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows without the heads; links are replaced by their texts."""
    lines = text.splitlines()
    heads = {head for head, line in pairwise(lines) if line.startswith("|---")}
    found = [line for line in lines if line.startswith("| ") and line.endswith(" |") and line not in heads]
    return [[_plain(cell) for cell in re.split(r"(?<!\\) \| ", line[2:-2])] for line in found]


def _plain(cell: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace(r"\|", "|").strip()


def code(cell: str) -> str:
    """The content of a cell that is one code span."""
    assert re.fullmatch(r"`[^`]+`", cell), cell
    return cell.strip("`")


def blocks(page: str) -> list[Block]:
    """All fenced blocks, in order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], page.count("\n", 0, m.start()) + 1) for m in found]


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
