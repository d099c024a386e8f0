"""Files of texts in every format that people have, and errors that name the line and the next step."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import sys
from pathlib import Path

import pytest

from sie_server.cli.inputs import BadInput, Columns, read_texts

TABLE = 'id,text\n1,"rain, and\nsnow"\n2,"he said ""hi"""\n'
PAIRS = [("1", "rain, and\nsnow"), ("2", 'he said "hi"')]


def read(
    tmp_path: Path, name: str, content: str | bytes, form: str | None = None, **columns: str
) -> list[tuple[str, str]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [tuple(each) for each in read_texts(str(path), form, Columns(**columns), 2**16)]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.jsonl", '{"id": 1, "text": "a"}\n\n{"id": "x", "text": "b", "url": 5}\n', [("1", "a"), ("x", "b")]),
        ("a.jsonl", '{"text": "a"}\r\n"b"\r\n', [("item-0", "a"), ("item-1", "b")]),
        ("a.ndjson", '{"id": null, "text": ""}', [("item-0", "")]),
        ("a.json", '[\n {"id": "x", "text": "a"},\n "b"\n]', [("x", "a"), ("item-1", "b")]),
        ("a.json", '{"id": 7, "text": "a"}\n{"text": "b"}\n', [("7", "a"), ("item-1", "b")]),
        ("a.csv", TABLE, PAIRS),
        ("a.csv", TABLE.replace("\n", "\r\n").replace("and\r\n", "and\n"), PAIRS),
        ("a.CSV", "text;id\na, b;1\n\nc;\n", [("1", "a, b"), ("item-1", "c")]),
        ("a.tsv", "id\ttext\n1\ta, b\n", [("1", "a, b")]),
        ("a.txt", "rain\n\n  \n[1] sun\r\na,b\n", [("item-0", "rain"), ("item-1", "[1] sun"), ("item-2", "a,b")]),
        ("a.txt", "one\u2028line", [("item-0", "one\u2028line")]),
        # without a known extension
        ("passages", '{"text": "a"}', [("item-0", "a")]),
        ("passages", ' ["a", "b"]', [("item-0", "a"), ("item-1", "b")]),
        ("passages", TABLE, PAIRS),
        ("passages", "id\ttext\n1\ta\n", [("1", "a")]),
        ("passages", "rain falls, stars burn\nb", [("item-0", "rain falls, stars burn"), ("item-1", "b")]),
    ],
)  # fmt: skip
def test_every_format(tmp_path: Path, name: str, content: str, wanted: list[tuple[str, str]]) -> None:
    assert read(tmp_path, name, content) == wanted


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_byte_order_marks(tmp_path: Path, name: str, encoding: str) -> None:
    contents = {
        "a.jsonl": '{"text": "Ätna €"}\n',
        "a.json": '["Ätna €"]',
        "a.csv": "text,n\r\nÄtna €,1\r\n",
        "a.txt": "Ätna €\r\n",
    }
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    assert read(tmp_path, name, mark + contents[name].encode(encoding)) == [("item-0", "Ätna €")]


def test_halves_of_surrogate_pairs_are_replaced_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path, "a.jsonl", '{"text": "a\\ud83d"}\n{"text": "b"}') == [
        ("item-0", "a\ufffd"),
        ("item-1", "b"),
    ]
    assert read(tmp_path, "a.json", '["\\udc00", "\\ud83d\\ude00"]') == [
        ("item-0", "\ufffd"),
        ("item-1", "😀"),
    ]
    assert capsys.readouterr().err.count("replaced by U+FFFD: 1") == 2


def test_columns_have_other_names(tmp_path: Path) -> None:
    found = read(tmp_path, "corpus.jsonl", '{"_id": "d1", "title": "T", "text": "a"}', text="title", id="_id")
    assert found == [("d1", "T")]
    assert read(tmp_path, "a.csv", "key,body\n1,b\n", text="body", id="key") == [("1", "b")]
    assert read(tmp_path, "data", "key\tbody\n1\tb\n", text="body") == [("item-0", "b")]


def test_the_format_may_be_given(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "a,b\nc", "text") == [("item-0", "a,b"), ("item-1", "c")]
    assert read(tmp_path, "a.txt", '{"text": "a"}', "jsonl") == [("item-0", "a")]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\nb")))
    assert [text for _, text in read_texts("-", None, Columns(), 100)] == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(BadInput, match="stdin is closed"):
        read_texts("-", None, Columns(), 100)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"id": 1}', r"line 2: no key 'text'; its keys are 'id'; .*--text-column"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": 5}', r"line 3: 'text' is a number; expected a string"),
        ("a.jsonl", '{"text": null}', r"line 1: 'text' is null"),
        ("a.jsonl", '{"id": 1.5, "text": "a"}', r"line 1: 'id' is a number; expected a string or an integer"),
        ("a.jsonl", '{"id": true, "text": "a"}', r"line 1: 'id' is a boolean"),
        ("a.jsonl", '{"id": ["a"], "text": "a"}', r"line 1: 'id' is an array"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"line 2: .*one JSON object per line.*--format"),
        ("a.jsonl", "5", r"line 1: expected an object or a string, got a number"),
        ("a.json", '{\n "text": "a"\n}', r"line 1: .*one JSON object per line.*jq -c"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b",\n"id": 1}', r"line 2: .*jq -c"),
        ("a.csv", "text,id,text\na,1,b\n", r"2 columns 'text'; rename"),
        ("a.tsv", "id\ttext\tid\n1\ta\t2\n", r"2 columns 'id'; rename"),
        ("a.json", '["a", {"text": 1}]', r"entry 2: 'text' is a number"),
        ("a.json", '["a"', r"the JSON array cannot be read: .*--format"),
        ("a.json", "[" * 50_000, r"the JSON array cannot be read"),
        ("a.csv", "id,body\n1,a\n", r"the header has no column 'text'; its columns are 'id', 'body'; .*--text-column"),
        ("a.csv", "id,text\n1,a\n2,b,c\n", r"line 3: 3 cells, and the header has 2; .*quotes"),
        ("a.csv", 'id,text\n1,"a\nb\n', r"line 2: unexpected end of data"),
        ("a.csv", 'id,text\n1,"a"b\n', r"line 2: .*in quotes"),
        ("a.csv", "id,text\n", r"a\.csv' contains no texts"),
        ("a.txt", "\n \n", r"contains no texts"),
        ("a.jsonl", "", r"contains no texts"),
        ("a.txt", b"good\nna\xefve\n", r"line 2, byte 3: 0xef is not UTF-8; .*iconv"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\0b", r"is not UTF-16"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"compressed by gzip; unpack it first"),
        ("a.csv", b"PK\x03\x04xl/workbook", r"a spreadsheet; save the texts as CSV"),
        ("a.csv", b"PAR1\0", r"Parquet"),
        ("a.txt", "x" * 70_000, r"more than 0\.0625 MiB; split it"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_and_the_next_step(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        read(tmp_path, name, content)
    text = raised.value.message
    assert "\n" not in text and ".." not in text and len(text) < 400


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.csv", "No such file"), (tmp_path, "directory")):
        with pytest.raises(BadInput, match=message):
            read_texts(str(path), None, Columns(), 100)


def test_an_error_quotes_only_a_part_of_long_keys(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        read(tmp_path, "a.jsonl", json.dumps({"k" * 5000: 1}))
    assert len(raised.value.message) < 400
