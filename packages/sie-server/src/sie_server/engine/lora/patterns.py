"""Regular expressions out of an adapter's configuration: they mean what they mean to PEFT, and stop nobody's work.

PEFT matches with Python's `re`, which can take years over a few characters and lets no other thread run meanwhile. The
library `regex` reads the same language, lets others run, and ends when it is told to. What the two read differently,
and counts that `regex` would write out until memory or stack are full (which ends the process), are refused.
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

LIMIT_S = 5.0  # of a processor, for all matches of one file; an adapter with a rank per module takes up to one second
LIMIT_SIZE = 20_000  # characters, with what is counted written out: 448 names of modules take as many
# To `re` other braces are plain characters, to `regex` some allow for errors; and only `regex` knows [[:alpha:]]
BRACES = re.compile(r"\{([^}]*)\}?")
COUNT = re.compile(r"(?P<least>[0-9]{0,5})(,(?P<most>[0-9]{0,5}))?")
CLASS = re.compile(r"\[:\^?\w+:\]")
NOT_ONE = (re.error, regex.error, ValueError, OverflowError, RecursionError)


class Patterns:
    """Those of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._left_s = LIMIT_S

    def compile(self, field: str, text: str, form: str = "{}") -> Pattern:
        """The expression `text` of a field; `form` is how it is used, with {} in its place.

        Raises:
            UnsupportedCheckpoint: it is none, or not one that can be served.
        """
        if why := _beyond(text):
            raise self.refused(field, text, why)
        used = form.format(text)
        try:
            re.compile(used)  # what PEFT cannot read is no pattern, whatever `regex` makes of it
            return Pattern(field, text, regex.compile(used), self)
        except NOT_ONE as error:
            deep = isinstance(error, RecursionError)
            why = "nested too deeply" if deep else f"not a regular expression: {str(error)!a:.100}"
            raise self.refused(field, text, f"is {why}") from error

    def timed(self, match: Callable[..., Any], name: str) -> Any:
        """The match of a name, as long as there is time left."""
        while self._left_s > 0:
            started = time.thread_time()
            try:
                return match(name, concurrent=True, timeout=self._left_s)
            except TimeoutError:  # by the clock of all threads, which here counts for nothing
                continue
            finally:
                self._left_s -= time.thread_time() - started
        raise TimeoutError

    def refused(self, field: str, text: str, why: str) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(f"{self._file}: the pattern {text!r:.100} in {field} {why}")


@dataclass(frozen=True)
class Pattern:
    """One of them, in the form in which it is used."""

    field: str
    text: str  # as the field has it
    compiled: Any  # of `regex`, which has no types
    patterns: Patterns

    def match(self, name: str) -> Any:
        """Its match from the start of the name, or None."""
        return self._timed(self.compiled.match, name)

    def fullmatch(self, name: str) -> Any:
        """Its match of the whole name, or None."""
        return self._timed(self.compiled.fullmatch, name)

    def _timed(self, match: Callable[..., Any], name: str) -> Any:
        try:
            return self.patterns.timed(match, name)
        except TimeoutError:
            why = f"takes more than {LIMIT_S:g} s to match, with the file's others: write it more simply"
            raise self.patterns.refused(self.field, self.text, why) from None


def _beyond(text: str) -> str | None:
    """Why an expression is refused unread."""
    counts = [COUNT.fullmatch(inner) for inner in BRACES.findall(text)]
    if not all(counts) or CLASS.search(text):
        return (
            "is not served: braces that hold something else than a count of 5 digits at most, or a [:class:]"
        )
    times = math.prod(
        max(1, *(int(n or 0) for n in found.group("least", "most"))) for found in counts if found
    )
    if len(text) * times > LIMIT_SIZE:
        return f"is longer than {LIMIT_SIZE} characters once its counts are written out"
    return None
