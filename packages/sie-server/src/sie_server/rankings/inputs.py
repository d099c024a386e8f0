"""The files of a job: queries, documents, and the candidates of each query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sie_server.errors import shown
from sie_server.eval.data.collection import DataError, named
from sie_server.eval.data.lines import JSON_SUFFIXES, objects, suffix_of, value_of
from sie_server.eval.data.texts import IDS, TEXTS, read_texts
from sie_server.eval.data.trec import read_run
from sie_server.wire.limits import MAX_ITEMS

QUERY_IDS = ("query_id", "qid", "_id", "id")
LISTS = ("documents", "candidates", "items")

Texts = Mapping[str, str]  # id → text


@dataclass(frozen=True)
class Inputs:
    """Queries with the documents to rank for each. `own` has texts that belong to one query only."""

    queries: Texts
    ranked: Mapping[str, Sequence[str]]  # query → ids of documents; a query may be missing
    documents: Texts
    own: Mapping[str, Texts]
    notes: tuple[str, ...] = ()

    def texts(self, query: str) -> list[str]:
        """Return the texts of the documents of a query, in the order of `ranked`."""
        texts = self.own.get(query, self.documents)
        return [texts[document] for document in self.ranked[query]]


def read_inputs(queries: Path, docs: Path | None, candidates: Path | None, depth: int | None) -> Inputs:
    """Read the files of a job.

    Without `candidates`, every query ranks all documents. `candidates` is a TREC run, whose texts are in `docs`, or has
    JSON lines with a query's id and its documents, with texts or with ids in `docs`. `depth` is the largest number of
    candidates per query.

    Raises:
        DataError: a file cannot be read, an id is repeated or unknown, or there is nothing to rank.
    """
    asked = read_texts(queries, once=True)
    blank = [query for query, text in asked.items() if not text.strip()]
    if blank:
        raise DataError(f"{queries}: {len(blank)} queries have no text: {named(blank)}; remove them")
    documents = read_texts(docs, once=True) if docs else {}
    if candidates is None:
        every = list(documents)
        inputs = Inputs(asked, dict.fromkeys(asked, every), documents, {})
    elif suffix_of(candidates) in JSON_SUFFIXES:
        inputs = _from_lists(asked, documents, candidates)
    elif docs is None:
        raise DataError(f"{candidates} has no texts; name the file of the documents with --docs")
    else:
        inputs = _from_run(asked, documents, candidates, docs)
    return _checked(_cut(inputs, depth), queries, candidates or docs or queries)


def _from_run(queries: Texts, documents: Texts, path: Path, docs: Path) -> Inputs:
    run = read_run(path)
    unknown = sorted({name for found in run.values() for name in found if name not in documents})
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} documents that {docs} does not have: {named(unknown)}; use the documents "
            "that the run was made with"
        )
    ranked = {
        query: [name for name, _ in sorted(found.items(), key=lambda entry: -entry[1])]
        for query, found in run.items()
    }
    return Inputs(queries, ranked, documents, {})


def _from_lists(queries: Texts, documents: Texts, path: Path) -> Inputs:
    ranked: dict[str, list[str]] = {}
    own: dict[str, dict[str, str]] = {}
    for number, record in objects(path):
        place = f"{path}, line {number}"
        query = _id(value_of(record, QUERY_IDS, place), place)
        if query in ranked:
            raise DataError(f"{place}: query {shown(query)} is on an earlier line too; join the two lines")
        texts = dict(_documents(record, documents, place))
        ranked[query] = list(texts)
        if any(texts[name] is not documents.get(name) for name in texts):
            own[query] = texts
    return Inputs(queries, ranked, documents, own)


def _documents(record: dict[str, Any], documents: Texts, place: str) -> Iterator[tuple[str, str]]:
    """Yield id and text of each document of a query."""
    listed = value_of(record, LISTS, place)
    if not isinstance(listed, list):
        raise DataError(f"{place}: the documents are {shown(listed)}; expected a list")
    seen: set[str] = set()
    for entry in listed:
        given = entry if isinstance(entry, dict) else {"id": entry}
        name = _id(value_of(given, IDS, place), place)
        if name in seen:
            raise DataError(f"{place}: the document {shown(name)} is listed twice; remove one")
        seen.add(name)
        if any(given.get(key) is not None for key in TEXTS):
            text = value_of(given, TEXTS, place)
        elif name in documents:
            text = documents[name]
        else:
            raise DataError(
                f"{place}: the document {shown(name)} has no text here and is not in --docs; add its text, or name "
                "the file that has it with --docs"
            )
        if not isinstance(text, str):
            raise DataError(f"{place}: the text of {shown(name)} is {shown(text)}; expected a string")
        yield name, text


def _id(value: Any, place: str) -> str:
    name = "" if isinstance(value, bool) or not isinstance(value, str | int) else str(value).strip()
    if not name:
        raise DataError(f"{place}: the id is {shown(value)}; expected a string or an integer")
    return name


def _cut(inputs: Inputs, depth: int | None) -> Inputs:
    if depth is None:
        return inputs
    ranked = {query: found[:depth] for query, found in inputs.ranked.items()}
    return Inputs(inputs.queries, ranked, inputs.documents, inputs.own, inputs.notes)


def _checked(inputs: Inputs, queries: Path, source: Path) -> Inputs:
    """Return the inputs with notes. Raises DataError if no query has documents, or one has too many."""
    missing = [query for query in inputs.queries if not inputs.ranked.get(query)]
    foreign = [query for query in inputs.ranked if query not in inputs.queries]
    if len(missing) == len(inputs.queries):
        example = f"; it has for example {named(foreign)}" if foreign else ""
        raise DataError(
            f"{source} has documents for none of the {len(missing)} queries of {queries}{example}"
        )
    for query, found in inputs.ranked.items():
        if len(found) > MAX_ITEMS:
            raise DataError(
                f"{source} has {len(found)} documents for query {shown(query)}; a request has at most {MAX_ITEMS:,}: "
                "choose candidates first and name them with --candidates"
            )
    notes = list(inputs.notes)
    if missing:
        notes.append(f"{len(missing)} queries have no candidates and are not in the output: {named(missing)}")
    if foreign:
        notes.append(
            f"{len(foreign)} queries of {source} are not in {queries} and are left out: {named(foreign)}"
        )
    return Inputs(inputs.queries, inputs.ranked, inputs.documents, inputs.own, tuple(notes))
