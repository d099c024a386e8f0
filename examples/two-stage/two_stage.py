"""Two stages: vector search finds candidates, the reranker sorts them.

    pip install ./packages/sie-sdk './packages/sie-server[offline-encoder]' -r examples/two-stage/requirements.txt
    sie-server serve &
    python examples/two-stage/two_stage.py "feeling awake at night after a long flight"

The models need no model hub: the encoder is all-MiniLM-L6-v2 from a package, the reranker is part of the server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import sqlite_vec

from sie_sdk import Item, SIEClient

CORPUS = Path(__file__).parents[1] / "demo" / "corpus.jsonl"
ENCODER, RERANKER = "sentence-transformers/all-MiniLM-L6-v2", "sie/mini-en"
DIMENSIONS = 384
SCHEMA = f"""
create table passages (id text unique, title text, text text);
create virtual table vectors using vec0(vector float[{DIMENSIONS}] distance_metric=cosine);
"""
NEAREST = """
select passages.id, title, text, 1 - distance
from vectors join passages on passages.rowid = vectors.rowid
where vector match ? and k = ? order by distance
"""


class Hit(NamedTuple):
    """A passage and its score in one stage; higher is more relevant."""

    id: str
    title: str
    text: str
    score: float


def open_database(path: str) -> apsw.Connection:
    """Open a SQLite database with vectors: one file (or `:memory:`), no server."""
    database = apsw.Connection(path)
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    database.enable_load_extension(False)
    if not database.execute("select 1 from sqlite_master where name = 'passages'").fetchone():
        database.execute(SCHEMA)
    return database


def add(database: apsw.Connection, client: SIEClient, passages: Sequence[dict[str, Any]]) -> None:
    """Encode new passages and store them with their vectors."""
    known = {row[0] for row in database.execute("select id from passages")}
    new = [passage for passage in passages if passage["id"] not in known]
    if not new:
        return
    items = [Item(text=f"{passage['title']}. {passage['text']}") for passage in new]
    results = client.encode(ENCODER, items, is_query=False)
    with database:
        for passage, result in zip(new, results, strict=True):
            database.execute("insert into passages values (:id, :title, :text)", passage)
            row = database.last_insert_rowid()
            database.execute("insert into vectors (rowid, vector) values (?, ?)", (row, result["dense"]))


def search(database: apsw.Connection, client: SIEClient, query: str, count: int) -> list[Hit]:
    """Return the nearest passages with their cosines (stage 1)."""
    vector = client.encode(ENCODER, Item(text=query), is_query=True)["dense"]
    return [Hit(*row) for row in database.execute(NEAREST, (vector, count))]


def rerank(client: SIEClient, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """Return the passages in the reranker's order, with its scores (stage 2)."""
    by_id = {hit.id: hit for hit in hits}
    items = [Item(id=hit.id, text=f"{hit.title}. {hit.text}") for hit in hits]
    entries = client.score(RERANKER, Item(text=query), items)["scores"]
    return [by_id[str(entry["item_id"])]._replace(score=entry["score"]) for entry in entries]


def main() -> None:
    parser = argparse.ArgumentParser(description="Vector search, then reranking.")
    parser.add_argument("query")
    parser.add_argument("--url", help="default: SIE_BASE_URL, else http://localhost:8080")
    parser.add_argument("--database", default=":memory:", help="a file keeps the vectors for later runs")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--top", type=int, default=5)
    args = parser.parse_args()
    passages = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    with SIEClient(args.url) as client:
        database = open_database(args.database)
        add(database, client, passages)
        found = search(database, client, args.query, args.candidates)
        place = {hit.id: rank for rank, hit in enumerate(found, 1)}
        for rank, hit in enumerate(rerank(client, args.query, found)[: args.top], 1):
            print(f"{rank}. {hit.score:.3f}  {hit.title}  (was {place[hit.id]})")
        database.close()


if __name__ == "__main__":
    main()
