"""Report phrases that the project's texts avoid, with replacements: check_prose.py [PATH ...].

prose.toml lists the phrases and their exceptions. Checked are Markdown (without code), and the comments, docstrings and
messages of Python, TypeScript and configuration files. Strings in tests are data and are not checked.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import token
import tokenize
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CONFIGURATION = {".toml", ".yaml", ".yml"}
SUFFIXES = {".md", ".py", ".ts", ".mts", ".cts", *CONFIGURATION}

CODE = "\0"  # replaces a character of code, which ends a passage
SPAN = "¤"  # replaces a character of code inside a sentence

MARKDOWN_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`|\]\([^)\s]*\)", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(`+)[^`\n]+\1|\$?\{[^{}\n]*\}")
TYPESCRIPT = re.compile(r"//[^\n]*|/\*.*?\*/|(?P<q>[\"'`])(?:\\.|(?!(?P=q))[^\\])*(?P=q)", re.DOTALL)
HASH_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n]*", re.MULTILINE)
QUOTE = re.compile(r"\w{0,2}(\"\"\"|'''|[\"'`])")
COMMENT_MARKER = re.compile(r"^[ \t]*(?:#+|//+|/?\*+/?)|\*/$", re.MULTILINE)


class Phrase(NamedTuple):
    pattern: re.Pattern[str]
    instead: str


class Finding(NamedTuple):
    line: int
    found: str
    instead: str


def rules() -> dict[str, list[dict[str, str]]]:
    """Read prose.toml."""
    return tomllib.loads((ROOT / "scripts/prose.toml").read_text(encoding="utf-8"))


def phrases(entries: list[dict[str, str]]) -> list[Phrase]:
    """Compile the phrases of prose.toml."""
    flags = re.IGNORECASE | re.MULTILINE
    return [Phrase(re.compile(entry["pattern"], flags), entry["instead"]) for entry in entries]


def findings(path: str, text: str, known: list[Phrase], allowed: list[str]) -> list[Finding]:
    """Return the uses of `known` phrases in a file, except within the `allowed` texts."""
    prose = prose_of(path, text)
    for passage in allowed:
        prose = prose.replace(passage, masked(passage, SPAN))
    joined, origins = joined_lines(prose)
    found = []
    for phrase in known:
        for match in phrase.pattern.finditer(joined):
            start = match.end() - len(match[0].lstrip(" .;"))
            piece, origin = origins[bisect_right(origins, (start, len(text))) - 1]
            line = text.count("\n", 0, origin + start - piece) + 1
            found.append(Finding(line, match[0].strip(), phrase.instead))
    return sorted(found)


def prose_of(path: str, text: str) -> str:
    """Return `text` with its code masked; positions stay the same."""
    if path.endswith(".md"):
        return MARKDOWN_CODE.sub(lambda code: masked(code[0], SPAN), text)
    parts = []
    end = 0
    for start, stop in passages(Path(path), text):
        parts += [masked(text[end:start], CODE), readable(text[start:stop])]
        end = stop
    return "".join([*parts, masked(text[end:], CODE)])


def readable(passage: str) -> str:
    """Replace quotes and comment markers by spaces, and mask code spans and placeholders."""
    if quote := QUOTE.match(passage):
        end = len(passage) - len(quote[1])
        passage = " " * quote.end() + passage[quote.end() : end] + " " * len(quote[1])
    passage = COMMENT_MARKER.sub(lambda marker: " " * len(marker[0]), passage)
    return CODE_SPAN.sub(lambda code: masked(code[0], SPAN), passage)


def masked(text: str, mask: str) -> str:
    """Replace all characters except white space by `mask`."""
    return re.sub(r"\S", mask, text)


def passages(path: Path, text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of every comment, docstring and message of a file, in order."""
    messages = not {"tests", "test"} & set(path.parts)
    if path.suffix == ".py":
        yield from python_passages(text, messages)
        return
    for match in (HASH_COMMENT if path.suffix in CONFIGURATION else TYPESCRIPT).finditer(text):
        if match[0][0] in "#/" or (messages and " " in match[0]):
            yield match.span()


def python_passages(text: str, messages: bool) -> Iterator[tuple[int, int]]:
    starts = [0, *(newline.end() for newline in re.finditer("\n", text))]
    strings = {token.STRING, getattr(token, "FSTRING_MIDDLE", token.STRING)}  # 3.12 and later split f-strings
    layout = {token.NEWLINE, token.NL, token.INDENT, token.DEDENT, token.COMMENT, token.ENCODING}
    before = token.ENCODING
    for part in tokenize.generate_tokens(io.StringIO(text).readline):
        docstring = part.type == token.STRING and before in layout and part.string.endswith('"""')
        message = messages and part.type in strings and " " in part.string
        if part.type == token.COMMENT or docstring or message:
            yield starts[part.start[0] - 1] + part.start[1], starts[part.end[0] - 1] + part.end[1]
        before = part.type


def joined_lines(prose: str) -> tuple[str, list[tuple[int, int]]]:
    """Return one line for each passage, and the position of each piece of it in the result and in `prose`."""
    pieces: list[str] = []
    origins = []
    length = 0
    for match in re.finditer(rf"[{CODE}\s]+|[^{CODE}\s]+", prose):
        piece = match[0]
        if not piece.strip(f"{CODE} \t\r\n"):
            piece = "\n" if not pieces or CODE in piece or piece.count("\n") > 1 else " "
        pieces.append(piece)
        origins.append((length, match.start()))
        length += len(piece)
    return "".join(pieces), origins


def main(arguments: list[str]) -> int:
    entries = rules()
    known = phrases(entries["phrase"])
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *arguments]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    report = []
    for path in listing.stdout.splitlines():
        if Path(path).suffix not in SUFFIXES or not (ROOT / path).is_file():
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        allowed = [entry["text"] for entry in entries["allow"] if entry["path"] == path]
        report += [f"{path}: prose.toml allows {a!r}, which is not in it" for a in allowed if a not in text]
        found = findings(path, text, known, allowed)
        report += [f"{path}:{line}: {phrase!r}: {instead}" for line, phrase, instead in found]
    print(*report, f"Prose: {len(report)} findings", sep="\n")
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
