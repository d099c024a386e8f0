"""Lines, JSON objects and rows of files, each with its number; gzip is unpacked."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from sie_server.errors import shown
from sie_server.eval.data.collection import DataError
from sie_server.files import open_regular

JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
MOST_CHARACTERS = 2**31 - 1  # of a cell


def suffix_of(path: Path) -> str:
    """Return the extension without `.gz`."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty, without their ends, numbered from 1.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with open_regular(path) as file:
            for number, line in enumerate(_unpacked(file, path), 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}, line {number}: not UTF-8; convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if path.suffix.lower() == ".gz" else file


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a file with one per line. Raises DataError."""
    for number, line in numbered_lines(path):
        try:
            value = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {error}; expected one JSON object per line") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object")
        yield number, value


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table. The cells of a CSV file may be in quotes; those of TSV have none. Raises DataError."""
    if suffix_of(path) != ".csv":
        yield from ((number, line.split("\t")) for number, line in numbered_lines(path))
        return
    lines = _lines(path)
    first = next(lines, "")
    csv.field_size_limit(MOST_CHARACTERS)
    delimiter = ";" if first.count(";") > first.count(",") else ","  # Excel writes `;` in many countries
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; put cells with quotes in quotes") from None


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of JSON lines, or the rows of a table by the names in its first row. Raises DataError."""
    if suffix_of(path) not in TABLE_SUFFIXES:
        yield from objects(path)
        return
    header: list[str] | None = None
    for number, row in rows(path):
        if header is None:
            header = [cell.strip() for cell in row]
        elif len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} cells, and the header has {len(header)}")
        else:
            yield number, dict(zip(header, row, strict=True))


def value_of(record: dict[str, Any], names: tuple[str, ...], place: str) -> Any:
    """Return the value of the first of `names` that a record has. Raises DataError if it has none."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    keys = ", ".join(shown(key) for key in list(record)[:8])
    raise DataError(f"{place}: no {' or '.join(map(shown, names))}; its keys are {keys or 'none'}")


def grade_of(value: Any, place: str) -> int:
    """Return a grade. Raises DataError unless it is a whole number, as every metric requires."""
    try:
        number = float(value)
        if number == int(number) and not isinstance(value, bool):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{place}: the grade is {shown(value)}; expected a whole number, 0 for not relevant")
