"""Regular expressions of an adapter's configuration, matched like PEFT does but with a time limit.

PEFT matches with Python's `re`, which can take years for a few characters and blocks all other threads. The library
`regex` reads the same language, releases the GIL, and has a timeout. Expressions that the two read differently are
refused, and so are counts that `regex` would expand until memory or stack overflow, which ends the process.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import regex

from sie_server.models.spec import UnsupportedCheckpoint

LIMIT_S = 5.0  # CPU seconds for all matches of a file; an adapter with a rank per module takes up to 1 s
LIMIT_SIZE = 20_000  # characters with counts expanded; 448 module names take about as many
# `re` takes other braces literally, `regex` reads some as fuzzy matching; only `regex` knows [[:alpha:]]
BRACES = re.compile(r"\{([^}]*)\}?")
COUNT = re.compile(r"(?P<least>[0-9]{0,5})(,(?P<most>[0-9]{0,5}))?")
CLASS = re.compile(r"\[:\^?\w+:\]")
COMPILE_ERRORS = (re.error, regex.error, ValueError, OverflowError, RecursionError)


class Patterns:
    """The regular expressions of a file, which share one time limit."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._left_s = LIMIT_S

    def compile(self, field: str, text: str, form: str = "{}") -> Pattern:
        """Compile the expression `text` of a field, put in place of {} in `form`.

        Raises:
            UnsupportedCheckpoint: the expression is invalid or refused.
        """
        if why := _beyond(text):
            raise self.refused(field, text, why)
        used = form.format(text)
        try:
            re.compile(used)  # an expression that PEFT cannot read is invalid, even if `regex` can
            return Pattern(field, text, regex.compile(used), self)
        except COMPILE_ERRORS as error:
            deep = isinstance(error, RecursionError)
            why = "nested too deeply" if deep else f"not a regular expression: {str(error)!a:.100}"
            raise self.refused(field, text, f"is {why}") from error

    def timed(self, match: Callable[..., Any], name: str) -> Any:
        """Return the match of a name.

        Raises:
            TimeoutError: the file's time is used up.
        """
        while self._left_s > 0:
            started = time.thread_time()
            try:
                return match(name, concurrent=True, timeout=self._left_s)
            except TimeoutError:  # measured in wall time, which is not the limit here
                continue
            finally:
                self._left_s -= time.thread_time() - started
        raise TimeoutError

    def refused(self, field: str, text: str, why: str) -> UnsupportedCheckpoint:
        """Return the error for a refused expression."""
        return UnsupportedCheckpoint(f"{self._file}: the pattern {text!r:.100} in {field} {why}")


@dataclass(frozen=True)
class Pattern:
    """A compiled expression."""

    field: str
    text: str  # as written in the field
    compiled: Any  # a `regex` pattern; the library has no types
    patterns: Patterns

    def match(self, name: str) -> Any:
        """Match from the start of the name."""
        return self._timed(self.compiled.match, name)

    def fullmatch(self, name: str) -> Any:
        """Match the whole name."""
        return self._timed(self.compiled.fullmatch, name)

    def _timed(self, match: Callable[..., Any], name: str) -> Any:
        try:
            return self.patterns.timed(match, name)
        except TimeoutError:
            why = f"takes more than {LIMIT_S:g} s to match, together with the file's other patterns: simplify it"
            raise self.patterns.refused(self.field, self.text, why) from None


def _beyond(text: str) -> str | None:
    """Return why an expression is refused before it is compiled; None: it is not."""
    counts = [COUNT.fullmatch(inner) for inner in BRACES.findall(text)]
    if not all(counts) or CLASS.search(text):
        return (
            "is not supported: braces may hold only a count of at most 5 digits, and [:class:] is not allowed"
        )
    times = math.prod(
        max(1, *(int(n or 0) for n in found.group("least", "most"))) for found in counts if found
    )
    if len(text) * times > LIMIT_SIZE:
        return f"is longer than {LIMIT_SIZE} characters with its counts expanded"
    return None
