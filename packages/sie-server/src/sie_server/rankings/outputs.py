"""The file of rankings: JSON lines, CSV, or a TREC run."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from sie_server.errors import shown
from sie_server.eval.data.collection import DataError
from sie_server.eval.report.runs import falling
from sie_server.offline.errors import OfflineError
from sie_server.offline.scorers import Answer

HEADER = ("query_id", "rank", "item_id", "score", "truncated")


@dataclass(frozen=True)
class Ranking:
    """The answer to one query. `documents` are in the order of the request, as the places in the answer."""

    query: str
    documents: list[str]
    answer: Answer
    most: int | None  # of the documents that are written

    def entries(self) -> Iterator[tuple[int, str, float, bool]]:
        """Yield rank from 0, id, score and whether the text was cut, the most relevant document first.

        Documents that a cascade has pruned have no score.
        """
        cut, scored = set(self.answer.truncated), len(self.answer.order) - self.answer.pruned
        for rank, place in enumerate(self.answer.order[:scored][: self.most]):
            yield rank, self.documents[place], self.answer.scores[place], place in cut

    def pruned(self) -> list[str]:
        """Return the ids of the documents that a cascade has pruned."""
        scored = len(self.answer.order) - self.answer.pruned
        return [self.documents[place] for place in self.answer.order[scored:]]


Rankings = Iterable[Ranking]


def _jsonl(file: IO[str], rankings: Rankings, model: str) -> None:
    """Write one query per line, with the names of the server's answer."""
    for each in rankings:
        scores = [
            {"item_id": name, "score": score, "rank": rank, **({"truncated": True} if cut else {})}
            for rank, name, score, cut in each.entries()
        ]
        line: dict[str, Any] = {"query_id": each.query, "model": model, "score_type": each.answer.score_type}
        if each.answer.query_truncated:
            line["query_truncated"] = True
        if each.answer.pruned:
            line["pruned"] = each.pruned()
        file.write(msgspec.json.encode(line | {"scores": scores}).decode() + "\n")


def _csv(file: IO[str], rankings: Rankings, model: str) -> None:
    """Write one document per row."""
    rows = csv.writer(file)
    rows.writerow(HEADER)
    for each in rankings:
        for rank, name, score, cut in each.entries():
            rows.writerow((each.query, rank, name, score, "true" if cut else "false"))


def _trec(file: IO[str], rankings: Rankings, model: str) -> None:
    """Write a run, with ranks from 1. Equal scores differ in the last digit, so that tools keep the order."""
    tag = quote(model, safe="/@:+")
    for each in rankings:
        entries = list(each.entries())
        scores = falling([score for _, _, score, _ in entries])
        for (rank, name, _, _), score in zip(entries, scores, strict=True):
            file.write(f"{each.query} Q0 {name} {rank + 1} {score} {tag}\n")


FORMATS: dict[str, Callable[[IO[str], Rankings, str], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".trec": _trec,
}


def check_ids(out: Path, names: Iterable[str]) -> None:
    """Refuse ids that the format of a file cannot hold. Raises DataError."""
    if out.suffix.lower() != ".trec":
        return
    for name in names:
        if len(name.split()) != 1:
            raise DataError(
                f"the id {shown(name)} has white space, which a TREC run cannot hold; choose an --out that ends in "
                ".jsonl or .csv"
            )


def write(out: Path, rankings: Rankings, model: str) -> None:
    """Write a file whole or not at all. Raises OfflineError."""
    new = out.with_name(f"{out.name}.new")
    try:
        with new.open("w", encoding="utf-8", newline="") as file:
            FORMATS[out.suffix.lower()](file, rankings, model)
        os.replace(new, out)  # noqa: PTH105
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        step = "make room, then start the same command again: nothing is scored twice"
        raise OfflineError(f"cannot write {out}: {error.strerror or error}; {step}") from None
