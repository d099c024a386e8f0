"""How much longer a tokenizer's own replacements and additions can make a text, from its `tokenizer.json`.

A normalizer may replace a character by a text of any length, and several in a row multiply. A decoder may do the same
with tokens, and a post-processor may add any number of special tokens. Such a file would fill the memory with the first
request. Real tokenizers replace a space by one other character, and add two or three tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sie_server.engine.text.loading.parts import read_parts
from sie_server.models.spec import UnsupportedCheckpoint

MOST = 64.0  # characters for each character of a text
MOST_ADDED = 1000  # characters that are put before a text
MOST_SPECIAL = 1000  # tokens that the post-processor adds


SEQUENCES = ("normalizers", "pretokenizers", "decoders")  # names of the steps of a sequence


@dataclass
class _File:
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


def check_expansion(content: bytes) -> None:
    """Check the replacements of a `tokenizer.json` that the library has accepted.

    Raises:
        UnsupportedCheckpoint: they could make a text very much longer.
    """
    try:
        file = read_parts(content, _File)
    except (ValueError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"tokenizer.json cannot be read: {error}") from error
    if _growth(file.decoder) > MOST:
        raise UnsupportedCheckpoint(
            f"the decoder in tokenizer.json can make a text more than {MOST:g} times longer, which is not supported"
        )
    if _special(file.post_processor) > MOST_SPECIAL:
        raise UnsupportedCheckpoint(
            f"the post_processor in tokenizer.json adds more than {MOST_SPECIAL} tokens, which is not supported"
        )
    if _growth(file.normalizer) * _growth(file.pre_tokenizer) > MOST:
        raise UnsupportedCheckpoint(
            f"the normalizer in tokenizer.json can make a text more than {MOST:g} times longer, which is not supported"
        )


def _growth(step: Any) -> float:
    """Return the largest factor of one step, or the product of a sequence of steps."""
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for part in (part for name in SEQUENCES for part in _listed(step, name)):
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


def _special(step: Any) -> int:
    """Return the most special tokens that a post-processor adds to a text or a pair."""
    if not isinstance(step, dict):
        return 0
    tokens = step.get("special_tokens")
    known = tokens if isinstance(tokens, dict) else {}
    total = sum(_special(part) for part in _listed(step, "processors"))
    for template in (_listed(step, "single"), _listed(step, "pair")):
        for piece in template:
            named = piece.get("SpecialToken") if isinstance(piece, dict) else None
            entry = known.get(str(named.get("id"))) if isinstance(named, dict) else None
            total += len(_listed(entry, "ids")) if isinstance(entry, dict) else 0
    return total


def _listed(step: dict[str, Any], name: str) -> list[Any]:
    found = step.get(name)
    return found if isinstance(found, list) else []
