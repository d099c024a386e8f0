"""Finding the parts of a collection: `load` reads a folder, or a file of query, text and grade."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sie_server.eval.data.collection import Collection, DataError, collection_of
from sie_server.eval.data.lines import JSON_SUFFIXES, TABLE_SUFFIXES, grade_of, records, value_of
from sie_server.eval.data.texts import read_texts
from sie_server.eval.data.trec import read_qrels

CORPUS = ("corpus", "collection", "documents")
QUERIES = ("queries", "topics")
QRELS = ("qrels", "qrels/test", "qrels.test")
JUDGMENTS = ("judgments", "judgements")
READABLE = (*JSON_SUFFIXES, *TABLE_SUFFIXES, ".txt")
QRELS_SUFFIXES = (".tsv", ".txt", ".qrels", ".trec", "")
QUERY_KEYS, TEXT_KEYS, GRADE_KEYS = ("query",), ("text", "document", "passage"), ("grade", "label", "score")


def load(data: str | Path, qrels: str | None = None, name: str | None = None) -> Collection:
    """Read a collection.

    `data` is a folder with `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` (or `qrels/test.tsv`), each also as TSV,
    CSV or with `.gz`, where the judgments may have TREC's form; or a JSON lines, CSV or TSV file of `query`, `text` and
    `grade`, or a folder with such a file named `judgments`. `qrels` names other judgments: a file, or a name in the
    folder, such as `dev`. `name` is that of the result, by default the folder's.

    Raises:
        DataError: a part is missing or cannot be used.
    """
    path = Path(data)
    name = name or path.resolve().name.removesuffix(".gz")
    if path.is_file():
        return _of_judgments(path, name)
    if not path.is_dir():
        raise DataError(f"{path} does not exist; --data takes a folder or a file")
    if (file := _part(path, JUDGMENTS, READABLE)) and qrels is None:
        return _of_judgments(file, name)
    corpus, queries = _needed(path, CORPUS), _needed(path, QUERIES)
    judgments = _qrels(path, qrels)
    return collection_of(name, read_texts(corpus), read_texts(queries), read_qrels(judgments))


def _part(folder: Path, names: tuple[str, ...], suffixes: tuple[str, ...]) -> Path | None:
    paths = (folder / f"{name}{suffix}{gz}" for name in names for suffix in suffixes for gz in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _needed(folder: Path, names: tuple[str, ...]) -> Path:
    found = _part(folder, names, READABLE)
    if found is None:
        listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} has no {names[0]}: expected {names[0]}.jsonl, .tsv or .csv, perhaps with .gz; it has {listed}"
        )
    return found


def _qrels(folder: Path, chosen: str | None) -> Path:
    if chosen and Path(chosen).is_file():
        return Path(chosen)
    names = (chosen, f"qrels/{chosen}", f"qrels_{chosen}", f"qrels.{chosen}") if chosen else QRELS
    found = _part(folder, names, QRELS_SUFFIXES)
    if found is None:
        others = ", ".join(str(path.relative_to(folder)) for path in _judgments_in(folder))
        step = (
            f"it has {others}; choose one with --qrels"
            if others
            else "judge some documents first, none are made up"
        )
        raise DataError(f"{folder} has no qrels: expected {names[0]}.tsv or {names[1]}.tsv; {step}")
    return found


def _judgments_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("**/*qrels*")) if path.is_file())


def _of_judgments(path: Path, name: str) -> Collection:
    """Read query, text and grade per line. Equal texts are one document, equal queries one query."""
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    ids: dict[str, str] = {}
    grades: dict[str, dict[str, int]] = {}
    notes: list[str] = []
    empty = 0
    for number, record in records(path):
        place = f"{path}, line {number}"
        query, text = value_of(record, QUERY_KEYS, place), value_of(record, TEXT_KEYS, place)
        if not isinstance(query, str) or not isinstance(text, str):
            raise DataError(f"{place}: query and text must be strings")
        grade = grade_of(value_of(record, GRADE_KEYS, place), place)
        if not query.strip():
            empty += 1
            continue
        document = ids.setdefault(f"d {text}", f"d{len(documents) + 1}")
        documents.setdefault(document, text)
        key = ids.setdefault(f"q {query}", f"q{len(queries) + 1}")
        queries.setdefault(key, query)
        if grades.setdefault(key, {}).setdefault(document, grade) != grade:
            raise DataError(f"{place}: the same query and text have another grade before; remove one of them")
    if not documents:
        raise DataError(f"{path} has no judgments: expected query, text and grade per line")
    if empty:
        notes.append(f"{empty} lines have an empty query and are left out")
    return collection_of(name.partition(".")[0], documents, queries, grades, tuple(notes))
