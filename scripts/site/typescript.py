"""The reference of the TypeScript client: every name that index.ts exports, with its comment and declaration.

Bodies are left out, as in a declaration file. Private members and imports are no part of the reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DECLARED = re.compile(
    r"^(?P<comment>/\*\*(?:(?!\*/).)*?\*/\n)?"
    r"^export (?:declare )?(?P<kind>abstract class|class|interface|type|function|const) "
    r"(?P<name>\w+)",
    re.MULTILINE | re.DOTALL,
)
# comments and strings are matched whole, so that brackets in them do not count
MARKS = re.compile(
    r"/\*.*?\*/|//[^\n]*"
    r"|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`"
    r"|[{}()\[\];]",
    re.DOTALL,
)
PRIVATE = re.compile(r"^ *(?:async |static |readonly )*#", re.MULTILINE)
TITLES = {
    "class": "Classes",
    "function": "Functions",
    "interface": "Types",
    "type": "Types",
    "const": "Constants",
}


class Declaration(NamedTuple):
    """An exported name."""

    name: str
    kind: str
    comment: str
    text: str


def reference(source: Path) -> str:
    """Return the page, in Markdown."""
    lines = [
        "# TypeScript client\n\nEvery name that `@superlinked/sie-sdk` exports. "
        "[The guide](../clients/typescript.md) shows how it is used.\n"
    ]
    found = list(exported(source))
    for title in dict.fromkeys(TITLES.values()):
        lines.append(f"\n## {title}\n")
        for each in found:
            if TITLES[each.kind.removeprefix("abstract ")] == title:
                lines.append(f"\n### {each.name}\n\n{each.comment}\n\n```typescript\n{each.text}\n```\n")
    return "".join(lines)


def exported(source: Path) -> Iterator[Declaration]:
    """Yield the declarations that index.ts exports, in its order.

    Raises:
        LookupError: a name has no declaration that this program finds.
    """
    index = (source / "index.ts").read_text(encoding="utf-8")
    for listed, file in re.findall(
        r'^export (?:type )?(\*|{[^}]*}) from "\./(\w+)\.js";', index, re.MULTILINE
    ):
        found = {each.name: each for each in declarations(source / f"{file}.ts")}
        names = list(found) if listed == "*" else re.findall(r"(?:type )?(\w+)(?=[,\s}])", listed)
        for name in names:
            if name not in found:
                raise LookupError(f"{file}.ts declares no {name}, which index.ts exports")
            yield found[name]


def declarations(path: Path) -> Iterator[Declaration]:
    """Yield the exported declarations of a file."""
    text = path.read_text(encoding="utf-8")
    for match in DECLARED.finditer(text):
        kind = match["kind"]
        start = match.start() + len(match["comment"] or "")
        whole = text[start : _end(text, start, kind)]
        yield Declaration(match["name"], kind, plain(match["comment"] or ""), _without_bodies(whole, kind))


def plain(comment: str) -> str:
    """Return the text of a comment."""
    inside = comment.strip().removeprefix("/**").removesuffix("*/")
    text = "\n".join(re.sub(r"^\s*\*? ?", "", line).rstrip() for line in inside.splitlines()).strip()
    return re.sub(r"([\[\]<])", r"\\\1", text)  # shapes such as [tokens, width] are no links


def _end(text: str, start: int, kind: str) -> int:
    """Return the place after a declaration: its closing brace, or the semicolon of a type or constant."""
    depth = 0
    for place, mark in _marks(text, start):
        depth += (mark in "{([") - (mark in "})]")
        if depth == 0 and (mark == ";" or (mark == "}" and kind not in ("type", "const"))):
            return place + 1
    raise LookupError(f"no end of: {text[start : start + 60]}")


def _marks(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Yield brackets and semicolons outside of comments and strings."""
    return ((m.start(), m[0]) for m in MARKS.finditer(text, start) if len(m[0]) == 1)


def _without_bodies(text: str, kind: str) -> str:
    """Return a declaration without the bodies of functions and methods, and without private members."""
    if kind in ("type", "interface", "const"):
        return text
    if kind == "function":
        return _head(text) + ";"
    [open_class] = [place for place, mark in _marks(text, 0) if mark == "{"][:1]
    members = [m for m in _members(text[open_class + 1 : -1]) if not PRIVATE.search(m)]
    return text[: open_class + 1] + "".join(f"\n{member}" for member in members) + "\n}"


def _head(text: str) -> str:
    """Return the text before the body of a function."""
    depth = 0
    for place, mark in _marks(text, 0):
        if mark == "{" and depth == 0:
            return text[:place].rstrip()
        depth += (mark in "{([") - (mark in "})]")
    return text.rstrip(";")


def _members(inside: str) -> Iterator[str]:
    """Yield the members of a class, each with its comment and without its body."""
    start = depth = 0
    for place, mark in _marks(inside, 0):
        depth += (mark in "{([") - (mark in "})]")
        if depth == 0 and mark in ";}":
            member = inside[start : place + 1].strip("\n")
            yield _head(member) + ";" if mark == "}" else _without_value(member)
            start = place + 1


def _without_value(member: str) -> str:
    return re.sub(r" = [^=>][^\n]*;$", ";", member)
