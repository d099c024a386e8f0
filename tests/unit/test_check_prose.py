"""The prose check finds planted phrases in every kind of passage and ignores rewritten texts, code and data."""

from __future__ import annotations

import re

import pytest

import check_prose
from check_prose import Phrase

KNOWN = [
    Phrase(re.compile(r"\bnobody\b", re.IGNORECASE), "no caller"),
    Phrase(re.compile(r"\bgives way\b"), "is evicted"),
    Phrase(re.compile(r"^what was\b", re.IGNORECASE | re.MULTILINE), "name it"),
]


def lines(path: str, text: str, *allowed: str) -> list[tuple[int, str]]:
    return [
        (finding.line, finding.found) for finding in check_prose.findings(path, text, KNOWN, list(allowed))
    ]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("page.md", "# Title\n\nNobody asked.\n\nWhat was cut.\n", [(3, "Nobody"), (5, "What was")]),
        ("page.md", "The oldest model gives\nway.\n", [(1, "gives way")]),  # across a line break
        ("a.py", '"""What was cut.\n\nNobody asked.\n"""\n', [(1, "What was"), (3, "Nobody")]),
        ("a.py", "x = 1  # nobody\n\n# the oldest gives\n# way\n", [(1, "nobody"), (3, "gives way")]),
        ("a.py", 'raise ValueError(f"{x} and nobody else")\n', [(1, "nobody")]),
        ("a.py", 'def f() -> None:\n    """Nobody."""\n', [(2, "Nobody")]),
        ("a.ts", "/**\n * The oldest gives\n * way.\n */\n", [(2, "gives way")]),
        (
            "a.ts",
            "let x = 1; // nobody\nthrow new Error(`${x}: nobody asked`);\n",
            [(1, "nobody"), (2, "nobody")],
        ),
        ("a.toml", 'x = 1  # nobody\ny = "nobody"\n', [(1, "nobody")]),
    ],
)
def test_phrases_are_found_with_their_lines(path: str, text: str, expected: list[tuple[int, str]]) -> None:
    assert lines(path, text) == expected


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("page.md", "# Title\n\nNo caller asked.\n\nTruncated texts are reported: what was cut.\n"),
        ("page.md", "Set `nobody`.\n\n```python\nnobody = 1\n```\n"),
        ("a.py", '"""Set `nobody` or {nobody}."""\n\nnobody = gives = "nobody"  # a name is not a message\n'),
        ("a.py", "# gives\n\n# way\n"),  # two passages
        ("tests/unit/a.py", 'text = "nobody asked"\n'),
        ("packages/sie-ts-sdk/test/a.ts", 'const text = "nobody asked";\n'),
        ("a.ts", "const nobody = 1; // one caller\n"),
    ],
)
def test_other_texts_pass(path: str, text: str) -> None:
    assert lines(path, text) == []


def test_an_allowance_covers_its_passage_only() -> None:
    assert lines("page.md", "Nobody's Song\n\nNobody\n", "Nobody's Song") == [(3, "Nobody")]


def test_the_projects_phrases_match_what_they_are_for() -> None:
    rules = check_prose.rules()
    known = check_prose.phrases(rules["phrase"])
    poor = {
        "Who asks is checked.",
        "What was cut is reported.",
        "It depends on what the weights are.",
        "Nobody waits any more.",
        "A batch runs at so much of the base's speed.",
        "The least recently used gives way, whatever its size.",
        "Whose turn it is.",
        "Want of room is not remembered.",
        "It takes off the pin.",
        "A name is of letters.",
        "The server is told to stop.",
        "The file is not there.",
    }
    good = (
        "The caller is authenticated. Truncated texts are reported. Speed depends on shapes. No caller waits. A batch "
        "runs at 90 % of base throughput; in turn, users who reload see it. Out-of-memory failures are not cached. "
        "Unloading unpins the model. Names may contain letters. Which field was it? The bytes tell two kinds apart."
    )
    assert [text for text in sorted(poor) if not check_prose.findings("page.md", text, known, [])] == []
    assert check_prose.findings("page.md", good, known, []) == []
