"""How much longer a tokenizer's own replacements can make a text, from its `tokenizer.json`.

A normalizer may replace a character by a text of any length, and several in a row multiply. Such a file would fill the
memory with the first request. Real tokenizers replace a space by one other character.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from sie_server.models.spec import UnsupportedCheckpoint

MOST = 64.0  # characters for each character of a text
MOST_ADDED = 1000  # characters that are put before a text


class _File(Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None


def check_expansion(content: bytes) -> None:
    """Check the replacements of a `tokenizer.json` that the library has accepted.

    Raises:
        UnsupportedCheckpoint: they could make a text very much longer.
    """
    try:
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"tokenizer.json cannot be read: {error}") from error
    if _growth(file.normalizer) * _growth(file.pre_tokenizer) > MOST:
        raise UnsupportedCheckpoint(
            f"the normalizer in tokenizer.json can make a text more than {MOST:g} times longer, which is not supported"
        )


def _growth(step: Any) -> float:
    """Return the largest factor of one step, or the product of a sequence of steps."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for part in (*_listed(step, "normalizers"), *_listed(step, "pretokenizers")):
        growth = min(growth * _growth(part), 2 * MOST)
    if len(str(step.get("prepend") or "")) > MOST_ADDED:
        return 2 * MOST
    if step.get("type") == "Replace":
        pattern = step.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        added = len(str(step.get("content") or ""))
        # an expression may match nothing at every character, and keep the character
        growth *= max(1.0, added / len(literal)) if literal else 1.0 + added
    return growth


def _listed(step: dict[str, Any], name: str) -> list[Any]:
    found = step.get(name)
    return found if isinstance(found, list) else []
