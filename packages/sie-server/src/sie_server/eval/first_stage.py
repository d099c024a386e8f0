"""The first stage: the candidates of each query, which models then rerank."""

from __future__ import annotations

import time
from base64 import b64decode  # msgspec writes bytes so, as JSON has none
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sie_server.eval.data.collection import Collection, DataError, named
from sie_server.eval.data.trec import read_run
from sie_server.offline.errors import needed
from sie_server.offline.journal import Journal, key_of
from sie_server.offline.progress import Step
from sie_server.offline.run import Piece, finish
from sie_server.offline.scorers import Scorer, Vectors

ENCODE_TEXTS = 32  # per request
BM25, JUDGED, ENCODE = "bm25", "judged", "encode:"


@dataclass(frozen=True)
class Candidates:
    """Documents of each query with their scores, best first. A query may have none."""

    name: str
    ranked: Mapping[str, Sequence[str]]
    scores: Mapping[str, Sequence[float]]
    notes: tuple[str, ...] = ()


def bm25(collection: Collection, depth: int) -> Candidates:
    """Return the best documents by BM25, with English stemming and stop words, as bm25s computes it.

    Every query gets `depth` documents, if there are that many, also documents that share no word with it.

    Raises:
        DataError: no document has a word that is indexed.
        OfflineError: bm25s is not installed.
    """
    library: Any = needed("bm25s")
    stemmer = needed("Stemmer").Stemmer("english")

    def tokenize(texts: Sequence[str]) -> Any:
        return library.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    words = tokenize(list(collection.documents.values()))
    if not any(words.ids):
        raise DataError(
            f"{collection.name}: no document has a word that BM25 indexes (stop words and single letters are left "
            "out); use another first stage, for example encode:MODEL"
        )
    index = library.BM25()
    index.index(words, show_progress=False)
    found, scores = index.retrieve(
        tokenize(list(collection.queries.values())),
        corpus=np.asarray(list(collection.documents)),
        k=min(depth, len(collection.documents)),
        show_progress=False,
    )
    names = list(collection.queries)
    return Candidates(
        "BM25",
        {query: [str(document) for document in row] for query, row in zip(names, found, strict=True)},
        {query: [float(score) for score in row] for query, row in zip(names, scores, strict=True)},
    )


def judged(collection: Collection, depth: int) -> Candidates:
    """Return the judged documents of each query in the order of the judgments."""
    ranked = {
        query: [document for document in collection.grades[query] if document in collection.documents][:depth]
        for query in collection.queries
    }
    scores = {query: [float(-place) for place in range(len(row))] for query, row in ranked.items()}
    return Candidates("judged", ranked, scores)


def from_run(path: Path, collection: Collection, depth: int) -> Candidates:
    """Return the best documents of a TREC run: by score, and by their order in the file if scores are equal.

    In a folder the run has the name of the collection and the extension `.trec`.

    Raises:
        DataError: the run is unreadable, has no query of the collection, or names unknown documents.
    """
    if path.is_dir() and not (path := path / f"{collection.name}.trec").exists():
        raise DataError(f"{path} does not exist; a folder has the run of each set as SET.trec")
    run = read_run(path)
    if not any(query in run for query in collection.queries):
        raise DataError(
            f"{path} has none of the {len(collection.queries)} queries of {collection.name}, but for example "
            f"{named(list(run))}; use a run of these queries"
        )
    unknown = sorted(
        {doc for query in collection.queries for doc in run.get(query, ()) if doc not in collection.documents}
    )
    if unknown:
        raise DataError(
            f"{path} names {len(unknown)} documents that {collection.name} does not have: {named(unknown)}; use the "
            "corpus that the run was made with"
        )
    ranked, scores = {}, {}
    for query in collection.queries:
        best = sorted(run.get(query, {}).items(), key=lambda entry: -entry[1])[:depth]
        ranked[query] = [document for document, _ in best]
        scores[query] = [score for _, score in best]
    missing = [query for query, row in ranked.items() if not row]
    short = sum(0 < len(row) < depth for row in ranked.values())
    notes = []
    if missing:
        notes.append(f"{len(missing)} queries are not in the run and count as 0: {named(missing)}")
    if short:
        notes.append(f"{short} queries have fewer than {depth} documents in the run")
    return Candidates(path.name, ranked, scores, tuple(notes))


async def encoded(
    collection: Collection, scorer: Scorer, model: str, depth: int, journal: Journal, steps: tuple[Step, Step]
) -> Candidates:
    """Return the nearest documents by the dense vectors of a model. Vectors are kept in the journal.

    Raises:
        OfflineError: the model has no dense vectors, or does not answer.
    """
    documents = await _vectors(list(collection.documents.values()), False, scorer, model, journal, steps[0])
    queries = await _vectors(list(collection.queries.values()), True, scorer, model, journal, steps[1])
    names = list(collection.documents)
    ranked, scores = {}, {}
    for query, vector in zip(collection.queries, queries, strict=True):
        cosines = documents @ vector
        best = np.argsort(-cosines, kind="stable")[:depth]
        ranked[query] = [names[place] for place in best]
        scores[query] = [float(cosines[place]) for place in best]
    return Candidates(model, ranked, scores)


async def _vectors(
    texts: list[str], is_query: bool, scorer: Scorer, model: str, journal: Journal, step: Step
) -> Vectors:
    async def encode(some: list[str]) -> dict[str, Any]:
        started = time.time()
        vectors = (await scorer.encode(model, some, is_query=is_query)).vectors
        return {"vectors": vectors.tobytes(), "width": vectors.shape[1], "started": started}

    pieces = [Piece(key_of(is_query, some), some) for some in _slices(texts)]
    await finish(pieces, encode, journal, step=step)
    return np.concatenate([_read(journal[piece.key]) for piece in pieces])


def _slices(texts: list[str]) -> Iterator[list[str]]:
    return (texts[start : start + ENCODE_TEXTS] for start in range(0, len(texts), ENCODE_TEXTS))


def _read(kept: Mapping[str, Any]) -> Vectors:
    return np.frombuffer(b64decode(kept["vectors"]), dtype=np.float32).reshape(-1, kept["width"])
