"""Commands of a shell script, as a reader of a page would type them. No shell runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")"}
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n.*?\n\s*\1\b", re.DOTALL)
FUNCTION = re.compile(r"^(\w+)\(\) \{(.*)\}$")


class Command(NamedTuple):
    """One command: its words without assignments, the files that it writes, and the text that it came from."""

    words: list[str]
    writes: list[str]
    text: str


class Script(NamedTuple):
    commands: list[Command]
    assigned: set[str]  # variables
    functions: set[str]
    used: set[str]  # variables


def parse(text: str) -> Script:
    """Parse the commands of a script. Raises ValueError if a quote is never closed."""
    script = Script([], set(), set(), set())
    for line in logical_lines(HEREDOC.sub("", text)):
        _read(line, script)
    return script


def logical_lines(text: str) -> Iterator[str]:
    """Join lines that end with a backslash or inside quotes."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        yield pending
        pending = ""
    if pending:
        raise ValueError(f"a quote is not closed: {pending}")


def _read(line: str, script: Script) -> None:
    found = FUNCTION.match(line.strip())
    if found:
        script.functions.add(found[1])
        line = found[2]
    line, inner = substitutions(line)
    for text in inner:
        _read(text, script)
    script.used.update(re.findall(r"\$\{?([A-Za-z_]\w*)", re.sub(r"'[^']*'", "", line)))
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token in SEPARATORS:
            _add(words, line, script)
            words = []
        else:
            words.append(token)


def _add(words: list[str], line: str, script: Script) -> None:
    writes = [words[i + 1] for i, word in enumerate(words[:-1]) if word in (">", ">>")]
    words = [
        word
        for i, word in enumerate(words)
        if word not in (">", ">>", "<") and (i == 0 or words[i - 1] not in (">", ">>", "<"))
    ]
    if words and words[0] == "sudo":
        words = words[1:]
    if words and words[0] == "export":
        script.assigned.update(word.split("=")[0] for word in words[1:])
        return
    while words and ASSIGNMENT.match(words[0]):
        script.assigned.add(words.pop(0).split("=")[0])
    if words:
        script.commands.append(Command(words, writes, line.strip()))


def substitutions(line: str) -> tuple[str, list[str]]:
    """Replace every `$(…)` outside of single quotes by the word SUBSTITUTED, and return the scripts in them."""
    plain, inner, i, quoted = "", [], 0, False
    while i < len(line):
        if line[i] == "'" and '"' not in (plain.count('"') % 2 * '"'):
            quoted = not quoted
        if line.startswith("$(", i) and not quoted:
            depth, end = 1, i + 2
            while end < len(line) and depth:
                depth += {"(": 1, ")": -1}.get(line[end], 0)
                end += 1
            inner.append(line[i + 2 : end - 1])
            plain, i = plain + "SUBSTITUTED", end
        else:
            plain, i = plain + line[i], i + 1
    return plain, inner
