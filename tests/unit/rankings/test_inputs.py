"""The files of a job: their contents, and one line for each mistake in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sie_server.eval import DataError
from sie_server.rankings.inputs import Inputs, read_inputs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "q.jsonl", {"id": "q1", "text": "rain"}, {"_id": 2, "query": "snow"})
    write(
        tmp_path / "d.jsonl",
        {"id": "a", "text": "A"},
        {"id": "b", "title": "T", "text": "B"},
        {"id": "c", "text": ""},
    )
    return tmp_path


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


def read(
    folder: Path, candidates: str | None = None, docs: str | None = "d.jsonl", depth: int | None = None
) -> Inputs:
    return read_inputs(
        folder / "q.jsonl",
        folder / docs if docs else None,
        folder / candidates if candidates else None,
        depth,
    )


def texts(inputs: Inputs) -> dict[str, dict[str, str]]:
    return {
        query: dict(zip(inputs.ranked[query], inputs.texts(query), strict=True))
        for query in inputs.queries
        if inputs.ranked.get(query)
    }


def test_without_candidates_every_query_ranks_all_documents(folder: Path) -> None:
    every = {"a": "A", "b": "T B", "c": ""}
    assert texts(read(folder)) == {"q1": every, "2": every}


def test_a_run_gives_the_candidates_by_score_and_depth_cuts_them(folder: Path) -> None:
    write(folder / "run.trec", "q1 Q0 a 1 0.5 t", "q1 Q0 b 2 0.9 t", "q9 Q0 c 1 1 t")
    inputs = read(folder, "run.trec")
    assert list(inputs.ranked["q1"]) == ["b", "a"] and texts(inputs) == {"q1": {"b": "T B", "a": "A"}}
    assert [note.partition(":")[0] for note in inputs.notes] == [
        "1 queries have no candidates and are not in the output",
        f"1 queries of {folder / 'run.trec'} are not in {folder / 'q.jsonl'} and are left out",
    ]
    assert texts(read(folder, "run.trec", depth=1)) == {"q1": {"b": "T B"}}


def test_lists_have_texts_of_their_own_or_ids(folder: Path) -> None:
    write(
        folder / "c.jsonl",
        {"query_id": "q1", "documents": [{"id": "x", "text": "X"}, "a", {"id": "b"}]},
        {"qid": 2, "candidates": ["c", "b"]},
    )
    assert texts(read(folder, "c.jsonl")) == {
        "q1": {"x": "X", "a": "A", "b": "T B"},
        "2": {"c": "", "b": "T B"},
    }
    write(folder / "c.jsonl", {"query_id": "q1", "documents": [{"id": "a", "text": "mine"}]})
    assert texts(read(folder, "c.jsonl", docs=None)) == {"q1": {"a": "mine"}}
    assert texts(read(folder, "c.jsonl")) == {"q1": {"a": "mine"}}  # not the one of --docs


@pytest.mark.parametrize(
    ("name", "records", "said"),
    [
        ("q.jsonl", [{"id": "q1", "text": "a"}, {"id": "q1", "text": "a"}], "line 2: the id 'q1' is on an earlier"),
        ("d.jsonl", [{"id": "a", "text": "a"}, {"id": "a", "text": "b"}], "line 2: the id 'a' is on an earlier"),
        ("q.jsonl", [{"id": "q1", "text": " "}], "1 queries have no text: 'q1'; remove"),
        ("q.jsonl", [{"text": "no id"}], "line 1: no '_id' or 'id'"),
        ("q.jsonl", ["no json"], "line 1"),
        ("q.jsonl", [], "has no texts"),
        ("run.trec", ["q1 Q0 gone 1 1 t"], "names 1 documents that .*d.jsonl does not have: 'gone'; use the documents"),
        ("run.trec", ["other Q0 a 1 1 t"], "for none of the 2 queries of .*q.jsonl; it has for example 'other'"),
        ("run.trec", ["q1 Q0 a 1 1 t", "q1 Q0 a 2 1 t"], "'a' is listed twice for query 'q1'"),
        ("run.trec", ["q1 a 1"], "line 1: 3 cells; expected `query Q0 document rank score tag`"),
        ("c.jsonl", [{"query_id": "q1", "documents": ["gone"]}], "line 1: the document 'gone' has no text here"),
        ("c.jsonl", [{"query_id": "q1", "documents": ["a", {"id": "a"}]}], "line 1: the document 'a' is listed twice"),
        ("c.jsonl", [{"query_id": "q1", "documents": ["a"]}] * 2, "line 2: query 'q1' is on an earlier line"),
        ("c.jsonl", [{"query_id": "q1", "documents": "a"}], "line 1: the documents are 'a'; expected a list"),
        ("c.jsonl", [{"query_id": "q1", "documents": [True]}], "line 1: the id is True; expected a string or an int"),
        ("c.jsonl", [{"query_id": "q1", "documents": [{"id": "a", "text": 5}]}], "the text of 'a' is 5; expected a"),
        ("c.jsonl", [{"query_id": "q1"}], "line 1: no 'documents' or 'candidates' or 'items'; its keys are 'query_id'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(folder: Path, name: str, records: list[Any], said: str) -> None:
    write(folder / name, *records)
    with pytest.raises(DataError, match=said) as raised:
        read(folder, name if name in ("run.trec", "c.jsonl") else None)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


def test_missing_files_and_runs_without_texts(folder: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone.jsonl: No such file"):
        read(folder, "gone.jsonl")
    write(folder / "run.trec", "q1 Q0 a 1 0.5 t")
    with pytest.raises(DataError, match="has no texts; name the file of the documents with --docs"):
        read(folder, "run.trec", docs=None)


def test_more_documents_than_a_request_has_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sie_server.rankings.inputs.MAX_ITEMS", 2)
    with pytest.raises(
        DataError, match=r"has 3 documents for query 'q1'; a request has at most 2: choose candidates"
    ):
        read(folder)
