"""A compiled template: fixed ids, and parts with placeholders for the caller's texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sie_server.engine.text.slices import count_sequence
from sie_server.models.batch import Ids, Tokens


@dataclass(frozen=True)
class Blank:
    """A part of a template with placeholders for the caller's texts."""

    split: tuple[str, ...]  # literals at even places, names of placeholders at odd places

    def has(self, name: str) -> bool:
        """Return whether the part has the placeholder `name`."""
        return name in self.split[1::2]

    def ends_with(self, name: str) -> bool:
        """Return whether `name` ends the part, so that truncating its ids truncates only that text."""
        return self.split[-1] == "" and self.split[-2] == name

    def fill(self, texts: dict[str, str]) -> str:
        """Return the part with `texts` in place of the placeholders."""
        return "".join(texts[part] if i % 2 else part for i, part in enumerate(self.split))


@dataclass(frozen=True)
class Form:
    """A compiled template: fixed ids and parts to fill, in order."""

    parts: tuple[Ids | Blank, ...]
    padding: int = 0  # tokens left out at the end, which the reference counts

    def blank(self, name: str) -> Blank:
        """Return the part with the placeholder `name`."""
        return next(part for part in self.parts if isinstance(part, Blank) and part.has(name))

    def place(self, name: str) -> int:
        """Return the index of the part with the placeholder `name`."""
        return next(i for i, part in enumerate(self.parts) if isinstance(part, Blank) and part.has(name))

    @property
    def before(self) -> int:
        """Number of fixed tokens before the first of query and document."""
        return self.fixed(self.parts[: min(self.place("query"), self.place("document"))])

    @property
    def after(self) -> int:
        """Number of fixed tokens after the last of query and document."""
        return self.fixed(self.parts[max(self.place("query"), self.place("document")) :])

    @staticmethod
    def fixed(parts: Sequence[Ids | Blank]) -> int:
        """Return the number of fixed tokens in some parts."""
        return sum(len(part) for part in parts if not isinstance(part, Blank))


@dataclass(frozen=True)
class Frame:
    """A template in which only the document is missing."""

    before: Ids
    blank: Blank  # the document's part
    after: Ids
    texts: dict[str, str]  # for the other placeholders
    room: int  # tokens for the document's part
    most: int  # of these, for a document that is truncated and not split
    around: int  # tokens of that part with an empty document
    query_cut: bool

    def part(self, document: str) -> str:
        """Return the text of the document's part."""
        return self.blank.fill(self.texts | {"document": document})

    def whole(self, part: Ids) -> Tokens:
        """Return the filled template; `part` are the ids of the document's part."""
        count_sequence(len(self.before) + len(part) + len(self.after))
        ids = np.concatenate((self.before, part, self.after))
        return Tokens(ids, len(ids))
