"""References from the commands of a page to options, files, targets and variables, and those that do not exist."""

from __future__ import annotations

import re

from support.deploy.references import CHECKS, Page, problems
from support.deploy.shell import parse
from support.docs.pages import Block, blocks

SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
ENVIRONMENT = {"HOME", "PWD", "USER", "PATH"}
SHELL = ("bash", "sh", "shell")


def typed(block: Block) -> str:
    """Return the commands of a block; a block `console` has them after `$ `, with the output between them."""
    if block.language != "console":
        return block.text
    lines = re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE)
    return "\n".join(lines) + "\n"


def faults(text: str) -> list[str]:
    """Return what the commands of a page refer to and does not exist."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    page, assigned, found = Page(prose), set(ENVIRONMENT), []
    functions: set[str] = set()
    for block in blocks(text):
        if block.language not in (*SHELL, "console"):
            continue
        script = parse(typed(block))
        assigned |= script.assigned
        functions |= script.functions
        found += [
            f"line {block.line}: ${name} is not set on this page" for name in sorted(script.used - assigned)
        ]
        for command in script.commands:
            page.files.update(command.writes)
            if command.words[0] not in functions:
                found += [f"line {block.line}: {problem}" for problem in problems(command, page)]
    for span in SPAN.findall(prose):
        program = span.split()[0]
        if (
            (program in CHECKS or program.endswith("sie-server"))
            and len(span.split()) > 1
            and "…" not in span
        ):
            found += [
                f"`{span}`: {problem}"
                for command in parse(span).commands
                for problem in problems(command, page)
            ]
    return found
