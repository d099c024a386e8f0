"""A collection: texts, queries and the user's judgments of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sie_server.offline.errors import OfflineError

MOST_NAMED = 5  # ids in a message

Grades = Mapping[str, Mapping[str, int]]  # query → document → grade; above 0 is relevant


class DataError(OfflineError):
    """A file of judgments cannot be used. The message is one line with the file, the place and the next step."""


@dataclass(frozen=True)
class Collection:
    """Texts and judged queries. `notes` name data that was left out or is doubtful."""

    name: str
    documents: Mapping[str, str]  # id → title and text
    queries: Mapping[str, str]  # only those with a relevant document
    grades: Grades  # of these queries
    notes: tuple[str, ...] = ()

    def sample(self, count: int | None, seed: int = 0) -> Collection:
        """Return the collection with `count` random queries. A larger sample of a seed contains a smaller one."""
        if count is None or count >= len(self.queries):
            return self
        shuffled = list(self.queries)
        random.Random(seed).shuffle(shuffled)
        return self._with(set(shuffled[:count]))

    def first(self, count: int | None) -> Collection:
        """Return the collection with its first `count` queries."""
        return self._with(set(list(self.queries)[:count]))

    def _with(self, kept: set[str]) -> Collection:
        queries = {name: text for name, text in self.queries.items() if name in kept}
        return replace(self, queries=queries, grades={name: self.grades[name] for name in queries})


def named(ids: list[str]) -> str:
    """Return ids for a message, the first few of them."""
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(repr(each[:60]) for each in ids[:MOST_NAMED]) + more


def collection_of(
    name: str,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    grades: Grades,
    notes: tuple[str, ...] = (),
) -> Collection:
    """Return the collection of the queries that can be evaluated.

    Raises:
        DataError: no query has a text and a relevant document, or the judgments belong to other texts.
    """
    judged = {query for query, found in grades.items() if any(grade > 0 for grade in found.values())}
    unknown = sorted(query for query in judged if query not in queries)
    if judged and len(unknown) == len(judged):
        raise DataError(
            f"{name}: the judgments name no query of the collection, for example {named(unknown)}; use the queries "
            "that were judged"
        )
    empty = [query for query, text in queries.items() if query in judged and not text.strip()]
    kept = {query: text for query, text in queries.items() if query in judged and text.strip()}
    if not kept:
        raise DataError(
            f"{name}: no query has a text and a document with a grade above 0; check the queries and the grades"
        )
    found = {query: grades[query] for query in kept}
    absent = sorted({doc for each in found.values() for doc in each if doc not in documents})
    if absent and not any(doc in documents for each in found.values() for doc in each):
        raise DataError(
            f"{name}: the judgments name no document of the corpus, for example {named(absent)}; use the corpus that "
            "was judged"
        )
    notes = (
        *notes,
        *_note(empty, "queries are empty and left out"),
        *_note(unknown, "judged queries have no text and are left out"),
        *_note(absent, "judged documents are not in the corpus and count as not found"),
    )
    return Collection(name, documents, kept, found, notes)


def _note(ids: list[str], text: str) -> tuple[str, ...]:
    return (f"{len(ids)} {text}: {named(ids)}",) if ids else ()
