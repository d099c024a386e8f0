"""Texts by id: a corpus or queries, as JSON lines, TSV or CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sie_server.errors import shown
from sie_server.eval.data.collection import DataError
from sie_server.eval.data.lines import objects, records, rows, suffix_of, value_of

IDS = ("_id", "id", "docid", "doc_id", "docno", "qid", "query_id")
TEXTS = ("text", "contents", "query")


def read_texts(path: Path, *, once: bool = False) -> dict[str, str]:
    """Return title and text by id. With `once`, an id may not be repeated, not even with the same text.

    JSON lines have the keys `_id`, `text` and perhaps `title`; CSV has a header with these names; TSV has an id and a
    text per line, and perhaps the header.

    Raises:
        DataError: the file is unreadable or empty, or an id has two texts.
    """
    found: dict[str, str] = {}
    for place, name, text in _entries(path):
        if not name:
            raise DataError(f"{place}: the id is empty")
        if once and name in found:
            raise DataError(f"{place}: the id {shown(name)} is on an earlier line too; ids must be unique")
        if found.setdefault(name, text) != text:
            raise DataError(f"{place}: the id {shown(name)} has another text before; ids must be unique")
    if not found:
        raise DataError(f"{path} has no texts")
    return found


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    suffix = suffix_of(path)
    if suffix in (".tsv", ".tab", ".txt") and not _has_header(path):
        for number, row in rows(path):
            if len(row) != 2:
                raise DataError(
                    f"{path}, line {number}: {len(row)} cells; expected an id, a tab and a text, or a header"
                )
            yield f"{path}, line {number}", row[0].strip(), row[1].strip()
        return
    for number, record in objects(path) if suffix == ".txt" else records(path):
        place = f"{path}, line {number}"
        name, text = value_of(record, IDS, place), value_of(record, TEXTS, place)
        title = record.get("title") or ""
        for key, value in (("text", text), ("title", title)):
            if not isinstance(value, str):
                raise DataError(f"{place}: {key} is not a string")
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise DataError(f"{place}: the id is {shown(name)}; expected a string or an integer")
        yield place, str(name).strip(), f"{title} {text}".strip()


def _has_header(path: Path) -> bool:
    first = next(rows(path), (0, []))[1]
    cells = {cell.strip() for cell in first}
    return bool(cells & set(IDS)) and bool(cells & set(TEXTS))
