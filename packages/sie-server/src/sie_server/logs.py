"""The log: one line per record, as text or as a JSON object, even if the record contains text from outside.

Ids, header values, file names and the texts of exceptions may contain line breaks and control characters. Written as
they are, they could imitate other log lines or control a terminal. Both formatters escape them.

A record may have `extra={FIELDS: {…}}`: named values, which the text form appends as `name=value`.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MOST = 8000  # characters of a message
FIELDS = "fields"
# at level INFO they report single requests of ours, or what `api.server` reports in the server's terms
CHATTY = ("httpx", "httpx2", "httpcore", "httpcore2", "filelock", "urllib3", "uvicorn.error")


# these add a handler of their own to their loggers when they are imported
WITH_HANDLERS = ("huggingface_hub", "transformers")


class LibraryLogger(logging.Logger):
    """The logger of a library. Its records reach our handler only, even if the library adds its own."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Do nothing."""

    @property
    def propagate(self) -> bool:
        """True; setting it has no effect."""
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass


class OneLine(logging.Formatter):
    """Formats records as text, so that only the server itself can start a line of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its traceback."""
        fields = "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        return escaped(super().formatMessage(record) + fields)

    def formatException(self, ei: object) -> str:
        """Return the traceback, indented."""
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        """Return the stack, indented."""
        return _indented(super().formatStack(stack_info))


class JsonLines(logging.Formatter):
    """Formats records as JSON objects in ASCII: time (UTC), level, logger, message, fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shortened(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = _shortened(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = _shortened(record.stack_info)
        return json.dumps(line, default=str)


def set_up(handler: logging.Handler, level: str, form: str = "text") -> None:
    """Send the log of all libraries, and Python's warnings, to a handler. `form` is `text` or `json`."""
    handler.setLevel(level.upper())  # a library may have set a lower level for its own loggers
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    logging.setLoggerClass(LibraryLogger)
    for name in WITH_HANDLERS:
        logging.getLogger(name)
    logging.setLoggerClass(logging.Logger)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if form == "json":
        sys.excepthook = _log_exception
        threading.excepthook = lambda thread: _log_exception(
            thread.exc_type, thread.exc_value or thread.exc_type(), thread.exc_traceback
        )


def report_end(message: str) -> None:
    """Write why the process ends to stderr: in the form of the log if that is JSON, else as `Error: …`."""
    if any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers):
        logging.getLogger("sie_server").critical("%s", message)
    elif sys.stderr is not None:
        print(f"Error: {escaped(message)}", file=sys.stderr)


def escaped(text: str) -> str:
    """Return a text with control characters and line breaks as escape sequences, cut to `MOST` characters."""
    text = _shortened(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST else f"{text[:MOST]}… ({len(text)} characters)"


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return fields


def _word(value: object) -> str:
    """Return a value so that the next field cannot be imitated: a text with spaces or quotes as JSON."""
    text = str(value)
    plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if plain and text else json.dumps(text, ensure_ascii=False)


def _indented(text: str) -> str:
    return "\n".join(f"    {escaped(line)}" for line in text.splitlines())


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None = None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("sie_server").critical("unexpected error", exc_info=(kind, error, traceback))
