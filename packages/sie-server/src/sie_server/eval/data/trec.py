"""Judgments (qrels) in TREC's or BEIR's form, and runs in TREC's form."""

from __future__ import annotations

from pathlib import Path

from sie_server.errors import shown
from sie_server.eval.data.collection import DataError
from sie_server.eval.data.lines import grade_of, numbered_lines

Run = dict[str, dict[str, float]]  # query → document → score


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Return the grades of a file: `query 0 document grade` (TREC) or `query document grade` (BEIR, with a header).

    Raises:
        DataError: the file is unreadable, has no judgments, or judges a document twice and differently.
    """
    found: dict[str, dict[str, int]] = {}
    for number, line in numbered_lines(path):
        cells = _cells(line)
        place = f"{path}, line {number}"
        if len(cells) not in (3, 4):
            raise DataError(
                f"{place}: {len(cells)} cells; expected `query 0 document grade` or `query document grade`"
            )
        query, document, grade = cells[0], cells[-2], cells[-1]
        if number == 1 and grade.isalpha():
            continue  # the header
        value = grade_of(grade, place)
        if found.setdefault(query, {}).setdefault(document, value) != value:
            raise DataError(
                f"{place}: {shown(document)} has another grade for query {shown(query)} before; remove one of them"
            )
    if not found:
        raise DataError(f"{path} has no judgments")
    return found


def read_run(path: Path) -> Run:
    """Return the documents of a TREC run, `query Q0 document rank score tag`, by query with their scores.

    Raises:
        DataError: the file is unreadable or empty, or lists a document twice for a query.
    """
    found: Run = {}
    for number, line in numbered_lines(path):
        cells = line.split()
        place = f"{path}, line {number}"
        if len(cells) != 6:
            raise DataError(f"{place}: {len(cells)} cells; expected `query Q0 document rank score tag`")
        query, document = cells[0], cells[2]
        try:
            score = float(cells[4])
        except ValueError:
            raise DataError(f"{place}: the score is {shown(cells[4])}; expected a number") from None
        if score != score:
            raise DataError(f"{place}: the score is not a number")
        documents = found.setdefault(query, {})
        if document in documents:
            raise DataError(
                f"{place}: {shown(document)} is listed twice for query {shown(query)}; remove one"
            )
        documents[document] = score
    if not found:
        raise DataError(f"{path} has no documents")
    return found
