"""The table of docs/attention.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "attention.md"


def attention_by_architecture() -> dict[str, tuple[str, str]]:
    """Return architecture → attention on a GPU, on a CPU; `all others` is the row of those that are not named.

    Raises:
        ValueError: an architecture has two rows.
    """
    found: dict[str, tuple[str, str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or cells[2] not in ("varlen", "dense"):
            continue
        for name in re.findall(r"`([^`]+)`", cells[0]) or [cells[0]]:
            if name in found:
                raise ValueError(f"{name} has two rows in {PAGE.name}")
            found[name] = (cells[2], cells[3])
    return found
