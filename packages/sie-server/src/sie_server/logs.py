"""The format of the log: one line per message, even if it contains text from outside.

Ids, header values, file names and the texts of exceptions may contain line breaks and control characters. Written as
they are, they could imitate other log lines or control a terminal. The formatter escapes them in every message, and
indents tracebacks, which keep their own line breaks.
"""

from __future__ import annotations

import logging

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST = 8000  # characters of a message


class OneLine(logging.Formatter):
    """Formats records so that only the server itself can start a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its traceback."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: object) -> str:
        """Return the traceback, indented."""
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        """Return the stack, indented."""
        return _indented(super().formatStack(stack_info))


def escaped(text: str) -> str:
    """Return a text with control characters and line breaks as escape sequences, cut to `MOST` characters."""
    if len(text) > MOST:
        text = f"{text[:MOST]}… ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _indented(text: str) -> str:
    return "\n".join(f"    {escaped(line)}" for line in text.splitlines())
