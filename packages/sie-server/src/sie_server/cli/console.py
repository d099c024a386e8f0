"""What commands print: results go to stdout, everything else to stderr; texts are printed unchanged.

A list has one line per row. On a terminal the columns are aligned, and a line that is too long is cut at its end, but
never inside an id. Anywhere else the columns are separated by tabs, whole and without a header, for `grep` and `cut`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.logging import RichHandler

from sie_server.logs import PLAIN, JsonLines, OneLine, escaped, set_up

errors = Console(markup=False, emoji=False, highlight=False, stderr=True)
GAP, MORE = "  ", " …"
SHORTEST = 12  # columns of a text that is cut


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], whole: int = 1) -> None:
    """Print a list to stdout. The first `whole` columns are never cut."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        lines = aligned([list(header), *cells], shutil.get_terminal_size().columns, whole)
    else:
        lines = ["\t".join(row) for row in cells]
    write("".join(f"{line}\n" for line in lines))


def write(text: str) -> None:
    """Write a result to stdout at once, so that a failure of the last write shows here.

    The process ends without a message if the reader has left (`| head`).

    Raises:
        ClickException: any other failure, such as a full disk.
    """
    try:
        click.echo(text, nl=False)
    except OSError as error:
        raise unwritable(error) from None


def unwritable(error: OSError) -> click.ClickException:
    """Return the error of a command whose result could not be written; the process ends if the reader has left."""
    # otherwise the end of the process tries again and reports the failure a second time
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        sys.exit(141)  # as a shell reports a process that SIGPIPE ended
    return click.ClickException(f"cannot write the output: {error.strerror}")


def write_json(value: Any) -> None:
    """Write a value to stdout as indented JSON."""
    write(json.dumps(value, indent=2) + "\n")


def aligned(rows: Sequence[Sequence[str]], columns: int, whole: int = 1) -> list[str]:
    """Return one line per row, cut to a number of terminal columns, after a cell or inside a text.

    The first `whole` cells of a row are always shown.
    """
    # a cell that is longer than nine in ten moves its own line only
    widths = [sorted(map(cell_len, column))[len(rows) * 9 // 10] for column in zip(*rows, strict=True)]
    return [_line(row, widths, columns, whole) for row in rows]


def _line(row: Sequence[str], widths: Sequence[int], columns: int, whole: int) -> str:
    line = _joined(row, widths)
    if cell_len(line) <= columns:
        return line
    count, room = whole, columns - len(MORE)
    while count < len(row) and cell_len(_joined(row[: count + 1], widths)) <= room:
        count += 1
    shown = _joined(row[:count], widths)
    if " " in row[count] and cell_len(shown) + SHORTEST <= room:
        shown = set_cell_size(_joined(row[: count + 1], widths), room).rstrip()  # a part of a text is useful
    return shown + MORE if cell_len(shown) <= room else shown


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(row, widths, strict=False)
    return GAP.join(cell + " " * (width - cell_len(cell)) for cell, width in cells).rstrip()


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
