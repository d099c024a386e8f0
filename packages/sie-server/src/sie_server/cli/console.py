"""What commands print: results go to stdout, everything else to stderr; texts are printed unchanged.

A list has one line per row. On a terminal the columns are aligned, and a line that is too long is cut at its end, but
never inside an id. Anywhere else the columns are separated by tabs, whole and without a
header, for `grep`, `cut` and `while read`.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.logging import RichHandler

from sie_server.logs import PLAIN, JsonLines, OneLine, escaped, set_up

errors = Console(markup=False, emoji=False, highlight=False, stderr=True)
GAP = "  "


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], whole: int = 1) -> None:
    """Print a list to stdout. The first `whole` columns are never cut."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout is None or not sys.stdout.isatty():
        click.echo("".join("\t".join(row) + "\n" for row in cells), nl=False)
        return
    for line in aligned([list(header), *cells], shutil.get_terminal_size().columns, whole):
        click.echo(line)


def aligned(rows: Sequence[Sequence[str]], columns: int, whole: int = 1) -> list[str]:
    """Return one line per row, cut to a number of terminal columns, but not inside its first `whole` cells."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths, columns, whole) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int], columns: int, whole: int) -> str:
    line = _joined(row, widths)
    if cell_len(line) <= columns:
        return line
    needed = cell_len(_joined(row[:whole], widths[:whole]))
    if needed >= columns - 1:
        return set_cell_size(line, needed)
    return set_cell_size(line, columns - 1).rstrip() + "…"


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()


def log_to_stderr(level: str, form: str = "text") -> None:
    """Write the log to stderr: with colours and without dates on a terminal, unless it is JSON."""
    handler: logging.Handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonLines())
    elif sys.stderr is not None and sys.stderr.isatty():
        handler = RichHandler(console=errors, show_path=False)
        handler.setFormatter(OneLine("%(message)s"))
    else:
        handler.setFormatter(OneLine(PLAIN))
    set_up(handler, level, form)


def give_up_on_pipe() -> None:
    """Stop writing to a stdout whose reader has left (`| head`), so that the end of the process reports nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
