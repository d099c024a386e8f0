"""Files of judged queries: every accepted form, and what is said about files that cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sie_server.eval import Collection, DataError, load
from sie_server.eval.data.texts import read_texts
from sie_server.eval.data.trec import read_qrels, read_run
from sie_server.eval.first_stage import bm25, from_run, judged
from support.judged import write_beir

CORPUS = '{"_id": "a", "title": "Red", "text": "apple"}\n{"_id": "b", "text": "blue sky"}\n'
QUERIES = '{"_id": "1", "text": "fruit"}\n{"_id": "2", "text": "weather"}\n{"_id": "3", "text": "unjudged"}\n'
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n2\tb\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder in the BEIR layout."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(CORPUS)
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / "qrels.tsv").write_text(QRELS)
    return folder


def test_the_beir_layout(folder: Path) -> None:
    found = load(folder)
    assert (found.name, found.notes) == ("set", ())
    assert found.documents == {"a": "Red apple", "b": "blue sky"}
    assert found.queries == {"1": "fruit", "2": "weather"}
    assert found.grades == {"1": {"a": 2, "b": 0}, "2": {"b": 1}}


def test_published_folders_have_qrels_by_split(folder: Path) -> None:
    (folder / "qrels.tsv").unlink()
    (folder / "qrels").mkdir()
    (folder / "qrels/test.tsv").write_text(QRELS)
    (folder / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\n3\ta\t1\n")
    assert list(load(folder).queries) == ["1", "2"]
    assert list(load(folder, "dev").queries) == ["3"]


def test_trec_files_tables_and_gzip(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "collection.tsv.gz", "wt") as file:
        file.write("a\tRed apple\nb\tblue sky\n")
    (tmp_path / "topics.csv").write_text('id,text\r\n1,"fruit, ""red"""\r\n\r\n2,"two\n\nlines"\r\n')
    (tmp_path / "qrels.txt").write_text("1 0 a 2\n1 0 b -1\n2 0 b 1\n")
    found = load(tmp_path)
    assert found.queries == {"1": 'fruit, "red"', "2": "two\n\nlines"}
    assert found.documents["a"] == "Red apple" and found.grades["1"] == {"a": 2, "b": -1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.jsonl", '{"query": "q", "text": "x", "grade": 1}\n{"query": "q", "text": "y", "grade": 0}\n'),
        ("pairs.csv", "query,text,grade\nq,x,1\nq,y,0\n"),
        ("pairs.csv", "grade;query;text\n1;q;x\n0;q;y\n"),
        ("pairs.tsv", "query\ttext\tlabel\nq\tx\t1\nq\ty\t0.0\n"),
    ],
)
def test_tables_of_query_text_and_grade(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = load(tmp_path / name)
    assert (found.name, found.documents, found.queries) == ("pairs", {"d1": "x", "d2": "y"}, {"q1": "q"})
    assert found.grades == {"q1": {"d1": 1, "d2": 0}}
    assert judged(found, 10).ranked == {"q1": ["d1", "d2"]}


def test_data_that_is_left_out_is_named(folder: Path) -> None:
    (folder / "queries.jsonl").write_text(QUERIES + '{"_id": "4", "text": " "}\n')
    with (folder / "qrels.tsv").open("a") as file:
        file.write("4\ta\t1\n2\tgone\t1\n9\ta\t1\n")
    found = load(folder)
    assert list(found.queries) == ["1", "2"]
    empty, unknown, absent = found.notes
    assert "empty" in empty and "'4'" in empty
    assert "no text" in unknown and "'9'" in unknown
    assert "not in the corpus" in absent and "'gone'" in absent


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("qrels.tsv", None, ["no qrels", "none are made up"]),
        ("corpus.jsonl", None, ["no corpus", "qrels.tsv, queries.jsonl"]),
        ("qrels.tsv", "1\tzz\t1\n2\tyy\t1\n", ["no document of the corpus", "'yy', 'zz'"]),
        ("qrels.tsv", "7\ta\t1\n", ["no query", "'7'"]),
        ("qrels.tsv", "1\ta\t0\n", ["grade above 0"]),
        ("qrels.tsv", "1\ta\t0.5\n", ["line 1", "'0.5'", "whole number"]),
        ("qrels.tsv", "1\ta\t1\n1\ta\t2\n", ["line 2", "another grade"]),
        ("qrels.tsv", "1\ta\n", ["line 1", "2 cells"]),
        ("queries.jsonl", '{"_id": "1", "text": ""}\n', ["no query has a text"]),
        ("corpus.jsonl", CORPUS + '{"_id": "a", "text": "pear"}\n', ["line 3", "'a'", "unique"]),
        ("corpus.jsonl", '{"_id": "a"}\n', ["line 1", "'text'", "its keys are '_id'"]),
        ("corpus.jsonl", '{"_id": "a", "text": 1}\n', ["line 1", "not a string"]),
        ("corpus.jsonl", CORPUS + "{broken\n", ["line 3", "JSON object per line"]),
        ("corpus.jsonl", b'{"_id": "a", "text": "\xff"}\n', ["line 1", "UTF-8"]),
        ("corpus.jsonl", "", ["has no texts"]),
    ],
)
def test_unusable_data_is_named(
    folder: Path, file: str, content: str | bytes | None, said: list[str]
) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        load(folder)
    assert all(part in str(error.value) for part in [*said, str(folder) if "line" in said[0] else ""]), (
        error.value
    )


def test_a_missing_folder_and_other_qrels_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(folder / "gone")
    with pytest.raises(DataError, match=r"dev\.tsv.*it has qrels\.tsv; choose one with --qrels"):
        load(folder, "dev")


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(CORPUS.encode())[:-9])
    with pytest.raises(DataError, match=r"cannot read .*corpus\.jsonl\.gz"):
        read_texts(path)


def test_a_run_is_read_by_score(folder: Path) -> None:
    run = folder / "bm25.trec"
    run.write_text("1 Q0 a 1 0.5 tag\n1 Q0 b 2 0.75 tag\n")
    assert read_run(run) == {"1": {"a": 0.5, "b": 0.75}}
    found = from_run(run, load(folder), depth=10)
    assert found.ranked == {"1": ["b", "a"], "2": []}
    assert "1 queries are not in the run and count as 0: '2'" in found.notes[0]
    assert from_run(run, load(folder), depth=1).ranked["1"] == ["b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 Q0 zz 1 0.5 tag", r"documents that set does not have: 'zz'"),
        ("8 Q0 a 1 0.5 tag", r"none of the 2 queries of set"),
        ("1 Q0 a 1 0.5", "5 cells"),
        ("1 Q0 a 1 high tag", "'high'"),
        ("1 Q0 a 1 nan tag", "not a number"),
        ("1 Q0 a 1 1 tag\n1 Q0 a 2 0 tag", "listed twice"),
        ("", "has no documents"),
    ],
)
def test_unusable_runs_are_named(folder: Path, line: str, said: str) -> None:
    (folder / "x.trec").write_text(line)
    with pytest.raises(DataError, match=said):
        from_run(folder / "x.trec", load(folder), depth=10)
    with pytest.raises(DataError, match=r"set\.trec does not exist; a folder has the run of each set"):
        from_run(folder, load(folder), depth=10)


def test_queries_and_documents_without_words() -> None:
    grades = {"q": {"a": 1}}
    found = bm25(Collection("s", {"a": "zebra", "b": ""}, {"q": "the of"}, grades), depth=5)
    assert sorted(found.ranked["q"]) == ["a", "b"]
    with pytest.raises(DataError, match=r"no document has a word that BM25 indexes.*encode:MODEL"):
        bm25(Collection("s", {"a": "", "b": "the"}, {"q": "zebra"}, grades), depth=5)


def test_samples_are_seeded_and_nested(tmp_path: Path) -> None:
    found = load(write_beir(tmp_path / "s", queries=20))
    some, more = found.sample(5, seed=1), found.sample(9, seed=1)
    assert set(some.queries) < set(more.queries) and len(some.queries) == 5
    assert some.queries.keys() == some.grades.keys()
    assert found.sample(5, seed=2).queries != some.queries
    assert found.sample(99) == found == found.sample(None)


def test_qrels_with_one_column_of_spaces(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("1   0 a\t1\n")
    with pytest.raises(DataError, match="2 cells"):
        read_qrels(tmp_path / "q")
