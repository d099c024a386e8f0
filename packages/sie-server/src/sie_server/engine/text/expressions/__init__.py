"""Whether the regular expressions of a tokenizer take a short time for a short text.

The library's engine tries the ways in which a part of a text may match, up to ten million for each place of the text.
`(a+)+b` needs twice as many for each further `a`, so a short text can take many seconds. A tokenizer with such an
expression is not used where it would block other requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

MOST_REPEATS = 2  # in one alternative; the expressions of GPT-2 to GPT-4o, Llama 3 and Qwen have at most two
# what is no repeat: an escape, also with a name in braces, a class of characters, and the start of a group
SINGLE = re.compile(r"\\[pPxu]\{[^}]*\}|\\.|\[(?:\[:[^\]]*:\]|\\.|[^\]\\])*\]|\(\?[<>=!:imsx-]*", re.DOTALL)
REPEATS = "+*{"


def is_brisk(tokenizer: Tokenizer) -> bool:
    """Return whether a text of some thousand characters is tokenised in milliseconds, regardless of its content."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    states = (json.loads(part.__getstate__()) for part in parts if part is not None)
    return all(_is_mild(expression) for state in states for expression in _expressions(state))


def _expressions(state: Any) -> Iterator[str]:
    if isinstance(state, list):
        for part in state:
            yield from _expressions(part)
    elif isinstance(state, dict):
        if isinstance(state.get("Regex"), str):
            yield state["Regex"]
        for part in state.values():
            yield from _expressions(part)


def _is_mild(expression: str) -> bool:
    """Return whether no group is repeated, and each alternative has few repeats."""
    plain = SINGLE.sub(lambda found: "(" if found[0].startswith("(") else "x", expression)
    depth = repeats = 0
    for place, sign in enumerate(plain):
        depth += (sign == "(") - (sign == ")")
        if sign == "|" and depth == 0:
            repeats = 0
        repeats += sign in REPEATS
        if repeats > MOST_REPEATS or (sign == ")" and plain[place + 1 : place + 2] in tuple(REPEATS)):
            return False
    return True
