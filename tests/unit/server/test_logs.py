"""Text from outside never starts a line of the log, and tracebacks keep their lines."""

from __future__ import annotations

import io
import logging

import pytest

from sie_server.logs import MOST, PLAIN, LibraryLogger, OneLine, escaped

FORGED = "2026-11-28 12:00:00,000 INFO sie_server.admin: ops requested /v1/admin/unload"


def logged(message: str, *values: object, error: Exception | None = None) -> list[str]:
    """Return the lines that a handler with the server's formatter writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine(PLAIN))
    logger = logging.Logger("sie_server.test")
    logger.addHandler(handler)
    logger.error(message, *values, exc_info=error)
    return stream.getvalue().split("\n")[:-1]


@pytest.mark.parametrize("mark", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_line_break_in_a_value_does_not_start_a_line(mark: str) -> None:
    [line] = logged("%s is ignored", f"name{mark}{FORGED}")
    assert mark not in line and FORGED in line
    assert line.splitlines() == [line]


@pytest.mark.parametrize("mark", ["\x1b[2J", "\x00", "\x7f", "\x9b", "\u202e", "\ud800", "\b"])
def test_control_characters_are_escaped(mark: str) -> None:
    [line] = logged("%s is ignored", f"name{mark}")
    assert line.isprintable() and "name\\" in line


@pytest.mark.parametrize("mark", ["\n", "\r", "\u2028", "\x0c"])
def test_the_text_of_an_exception_does_not_start_a_line(mark: str) -> None:
    try:
        raise ValueError(f"odd{mark}{FORGED}")
    except ValueError as error:
        lines = logged("unexpected error", error=error)
    assert lines[0].endswith("ERROR sie_server.test: unexpected error")
    assert lines[1] == "    Traceback (most recent call last):" and len(lines) > 3
    assert all(line.startswith("    ") for line in lines[1:])
    assert any(FORGED in line for line in lines)


def test_ordinary_text_is_unchanged_and_long_text_is_cut() -> None:
    assert escaped("Ein Satz, déjà vu 😀: 'a' → b…") == "Ein Satz, déjà vu 😀: 'a' → b…"
    assert len(escaped("x" * 10**6)) < MOST + 50
    assert escaped("x" * 10**6).endswith("(1000000 characters)")


def test_a_library_cannot_write_to_stderr_beside_our_handler() -> None:
    """transformers does this when it is imported; a JSON log would then have lines that are not JSON."""
    library = LibraryLogger("library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    assert library.handlers == [] and library.propagate is True
