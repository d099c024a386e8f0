"""Texts from files as people have them: JSON lines, a JSON array, CSV, TSV or lines of text.

The format is that of `--format`, else of the file's extension, else of the content. Every error names the line and the
next step, and nothing is read beyond a limit.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click
import msgspec

from sie_server.api.edge.encodings import readable
from sie_server.errors import shown

FORMATS = ("jsonl", "json", "csv", "tsv", "text")
OTHER_FORMAT = f"choose another format with --format: {', '.join(FORMATS)}"
EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
}
# the longer mark first, because that of UTF-32 begins like that of UTF-16
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
OTHER_FILES = (
    (b"\x1f\x8b", "compressed by gzip; unpack it first: gzip -dc FILE | sie-server score … -"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first: zstd -dc FILE | sie-server score … -"),
    (b"BZh", "compressed by bzip2; unpack it first: bzip2 -dc FILE | sie-server score … -"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first: xz -dc FILE | sie-server score … -"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; save the texts as CSV"),
    (b"PAR1", "in the Parquet format; save the texts as CSV or JSON lines"),
)


class Text(NamedTuple):
    """One candidate. `id` is the one in the file, else `item-N`, counted from 0."""

    id: str
    text: str


@dataclass(frozen=True)
class Columns:
    """The keys of JSON objects, or names of columns, that hold text and id."""

    text: str = "text"
    id: str = "id"


class BadInput(click.ClickException):
    """The input cannot be read; the message is one line."""


def read_texts(file: str, form: str | None, columns: Columns, most: int) -> list[Text]:
    """Return the texts of a file, or of stdin if `file` is `-`; at most `most` bytes are read.

    Raises:
        BadInput: the input is unreadable, too large, or has no texts.
    """
    content = _decoded(_bytes(file, most))
    form = form or EXTENSIONS.get(Path(file).suffix.lower()) or _guess(content, columns)
    if form in ("csv", "tsv"):
        found = list(_from_table(content, form, columns))
    elif form == "text":
        found = [(None, line) for line in _lines(content) if line.strip()]
    else:
        found = list(_from_json(content, columns))
    if not found:
        raise BadInput(f"{_name(file)} contains no texts")
    return [Text(f"item-{i}" if name is None else name, text) for i, (name, text) in enumerate(found)]


def _name(file: str) -> str:
    return "the input" if file == "-" else shown(file)


def _bytes(file: str, most: int) -> bytes:
    try:
        if file == "-":
            if sys.stdin is None:
                raise BadInput("stdin is closed; name a file")
            return _within(sys.stdin.buffer, file, most)
        with Path(file).open("rb") as stream:
            return _within(stream, file, most)
    except OSError as error:
        raise BadInput(f"cannot read {_name(file)}: {error.strerror or error}") from None


def _within(stream: BinaryIO, file: str, most: int) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise BadInput(
            f"{_name(file)} has more than {most / 2**20:g} MiB; split it, or raise SIE_MAX_BODY_MB (in MiB)"
        )
    return content


def _decoded(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 and UTF-32 with a byte order mark."""
    for magic, what in OTHER_FILES:
        if content.startswith(magic):
            raise BadInput(f"the input is {what}")
    mark, encoding = next((each for each in MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: len(mark) + error.start]
        line, byte = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
        hint = "" if mark else "; convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        wrong = content[len(before) : len(before) + 1].hex()
        raise BadInput(
            f"line {line}, byte {byte}: 0x{wrong} is not {encoding.upper()[:6].rstrip('-')}{hint}"
        ) from None


def _lines(content: str) -> Iterator[str]:
    """Yield the lines without their ends: LF, CR LF or CR. Other line separators of Unicode are part of a text."""
    return (line.removesuffix("\n") for line in io.StringIO(content, newline=None))


def _guess(content: str, columns: Columns) -> str:
    """Return the format of a content without a known extension: of JSON, a table with a header, or lines of text."""
    start = content.lstrip()[:1]
    if start and start in "[{":
        return "json"
    header = next((line for line in _lines(content) if line.strip()), "")
    for delimiter, form in (("\t", "tsv"), (",", "csv"), (";", "csv")):
        if delimiter in header and columns.text in [cell.strip(' "') for cell in header.split(delimiter)]:
            return form
    return "text"


# ── JSON ──


def _from_json(content: str, columns: Columns) -> Iterator[tuple[str | None, str]]:
    body, halves = readable(content.encode())
    if halves:
        content = body.decode()
        click.echo(f"note: halves of surrogate pairs that were replaced by U+FFFD: {halves}", err=True)
    if content.lstrip().startswith("["):
        try:
            values = msgspec.json.decode(content)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BadInput(f"the JSON array cannot be read: {error}; {OTHER_FORMAT}") from None
        yield from (_of_json(value, f"entry {i}", columns) for i, value in enumerate(values, 1))
        return
    for i, line in enumerate(_lines(content), 1):
        if line.strip():
            try:
                value = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                step = "join its lines, for example with: jq -c . FILE" if _begins(line) else OTHER_FORMAT
                raise BadInput(
                    f'line {i}: {error}; expected one JSON object per line, {{"id": "…", "text": "…"}}; {step}'
                ) from None
            yield _of_json(value, f"line {i}", columns)


def _begins(line: str) -> bool:
    """Return whether a line is the first one of an object that spreads over several lines."""
    return line.strip() == "{" or (line.lstrip().startswith("{") and line.rstrip().endswith(("{", "[", ",")))


def _of_json(value: Any, where: str, columns: Columns) -> tuple[str | None, str]:
    if isinstance(value, str):
        return None, value
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected an object or a string, got {_kind(value)}")
    if columns.text not in value:
        keys = ", ".join(shown(key) for key in list(value)[:8])
        raise BadInput(
            f"{where}: no key {shown(columns.text)}; its keys are {keys or 'none'}; choose one with --text-column"
        )
    text, name = value[columns.text], value.get(columns.id)
    if not isinstance(text, str):
        raise BadInput(f"{where}: {shown(columns.text)} is {_kind(text)}; expected a string")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise BadInput(f"{where}: {shown(columns.id)} is {_kind(name)}; expected a string or an integer")
    return None if name is None else str(name), text


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", bool: "a boolean", str: "a string", type(None): "null"}
    return kinds.get(type(value), "a number")


# ── tables ──


def _from_table(content: str, form: str, columns: Columns) -> Iterator[tuple[str | None, str]]:
    """Read a table whose first row has the names of the columns."""
    csv.field_size_limit(max(len(content), 1))
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=_delimiter(content, form), strict=True)
    header: list[str] | None = None
    place = number = -1
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise BadInput(
                f"line {line}: {error}; a cell with quotes or line breaks must be in quotes"
            ) from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            place, number = (
                _find(header, columns.text),
                _find(header, columns.id) if columns.id in header else -1,
            )
            continue
        if len(row) != len(header):
            raise BadInput(
                f"line {line}: {len(row)} cells, and the header has {len(header)}; put texts with separators in quotes"
            )
        yield (row[number].strip() or None) if number >= 0 else None, row[place]


def _delimiter(content: str, form: str) -> str:
    if form == "tsv":
        return "\t"
    header = next((line for line in _lines(content) if line.strip()), "")
    return ";" if header.count(";") > header.count(",") else ","  # Excel writes `;` in many countries


def _find(header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise BadInput(
            f"the header has {header.count(name)} columns {shown(name)}; rename all but one, or choose another with "
            "--text-column or --id-column"
        )
    if name not in header:
        names = ", ".join(shown(cell) for cell in header[:8])
        raise BadInput(
            f"the header has no column {shown(name)}; its columns are {names}; choose one with --text-column, or "
            "read lines of text with --format text"
        )
    return header.index(name)
