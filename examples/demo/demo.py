"""Keyword search and reranking side by side.

    make demo                                 # or: .venv/bin/python examples/demo/demo.py --all --top 8

The passages were written to mislead keyword search. The demo starts a server with the embedded reranker, sends requests
through the client, and stops the server.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import bm25s
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_server import running_server
from sie_sdk import Item, SIEClient

HERE = Path(__file__).parent
MODEL = "sie/mini-en"
CANDIDATES = 20  # of the first stage, for the reranker
IN_FULL = 3  # queries whose results are shown; --all shows those of every query
P = ParamSpec("P")


class Hit(NamedTuple):
    id: str
    score: float


@dataclass
class Outcome:
    """The quality and speed of one order over all queries."""

    name: str
    orders: list[list[bool]] = field(default_factory=list)  # per query: is the passage at this rank relevant?
    seconds: list[float] = field(default_factory=list)

    def add(self, hits: Sequence[Hit], relevant: Sequence[str], seconds: float) -> None:
        self.orders.append([hit.id in relevant for hit in hits])
        self.seconds.append(seconds)


def load(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def document(passage: dict[str, Any]) -> str:
    return f"{passage['title']}. {passage['text']}"


class FirstStage:
    """BM25 over titles and texts, with English stop words."""

    def __init__(self, passages: Sequence[dict[str, Any]]) -> None:
        self._ids = [passage["id"] for passage in passages]
        self._index = bm25s.BM25()
        self._index.index(self._tokens([document(p) for p in passages]), show_progress=False)

    def search(self, query: str) -> list[Hit]:
        rows, scores = self._index.retrieve(self._tokens([query]), k=CANDIDATES, show_progress=False)
        return [Hit(self._ids[row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]

    def _tokens(self, texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)


def rerank(client: SIEClient, query: str, hits: Sequence[Hit], texts: dict[str, str]) -> list[Hit]:
    items = [Item(id=hit.id, text=texts[hit.id]) for hit in hits]
    result = client.score(MODEL, Item(text=query), items)
    return [Hit(str(entry["item_id"]), entry["score"]) for entry in result["scores"]]


def timed(search: Callable[P, list[Hit]], *args: P.args, **kwargs: P.kwargs) -> tuple[list[Hit], float]:
    start = time.perf_counter()
    return search(*args, **kwargs), time.perf_counter() - start


def reciprocal_rank(order: Sequence[bool]) -> float:
    return 1 / (order.index(True) + 1) if True in order else 0.0


def ndcg_at_10(order: Sequence[bool]) -> float:
    def gain(flags: Sequence[bool]) -> float:
        return sum(flag / math.log2(rank + 2) for rank, flag in enumerate(flags[:10]))

    ideal = gain(sorted(order, reverse=True))
    return gain(order) / ideal if ideal else 0.0


def movement(before: int, after: int) -> Text:
    if after == before:
        return Text("=", style="dim")
    up = after < before
    return Text(f"{'↑' if up else '↓'}{abs(before - after)}", style="green" if up else "red")


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table. Columns named `<…` contain text and may shrink; the others contain numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in columns:
        if name.startswith("<"):
            table.add_column(name[1:])
        else:
            table.add_column(name, justify="right", no_wrap=True, min_width=max(len(name), 2))
    return table


def comparison(
    query: dict[str, Any], before: Sequence[Hit], after: Sequence[Hit], titles: dict[str, str], top: int
) -> Table:
    def title(hit: Hit) -> Text:
        relevant = hit.id in query["relevant"]  # the star is visible without colours, too
        mark, style = ("★ ", "bold green") if relevant else ("  ", "")
        return Text(mark + titles[hit.id], style=style, no_wrap=True, overflow="ellipsis")

    sides = ("#", " BM25", "<  keyword search", "score", "<  reranked", "moved")
    table = new_table(f"“{query['text']}”", *sides)
    place = {hit.id: rank for rank, hit in enumerate(before)}
    for rank, (old, new) in enumerate(zip(before[:top], after[:top], strict=True)):
        left, right = (f"{old.score:.2f}", title(old)), (f"{new.score:.3f}", title(new))
        table.add_row(str(rank + 1), *left, *right, movement(place[new.id], rank))
    return table


def summary(outcomes: Sequence[Outcome]) -> Table:
    count = len(outcomes[0].orders)
    title = f"Over these {count} queries"
    table = new_table(title, "<order", "first right", "MRR", "nDCG@10", "median ms")
    for outcome in outcomes:
        first = sum(order[0] for order in outcome.orders)
        mrr = statistics.mean(map(reciprocal_rank, outcome.orders))
        ndcg = statistics.mean(map(ndcg_at_10, outcome.orders))
        middle = statistics.median(outcome.seconds) * 1000
        table.add_row(outcome.name, f"{first} of {count}", f"{mrr:.3f}", f"{ndcg:.3f}", f"{middle:.1f}")
    return table


def show(console: Console, client: SIEClient, top: int, in_full: int = IN_FULL) -> None:
    """Rank all queries, show the results of the first `in_full` of them, and a summary of all."""
    passages, queries = load("corpus.jsonl"), load("queries.jsonl")
    titles = {passage["id"]: passage["title"] for passage in passages}
    texts = {passage["id"]: document(passage) for passage in passages}
    first_stage = FirstStage(passages)
    _, warm_up = timed(rerank, client, "first request", first_stage.search("first request"), texts)
    console.print(f"First request: {warm_up * 1000:.0f} ms. ★ marks the passage that answers the query.\n")
    keyword, reranked = Outcome("keyword search"), Outcome("reranked")
    for number, query in enumerate(queries):
        text, relevant = query["text"], query["relevant"]
        before, search_time = timed(first_stage.search, text)
        after, rerank_time = timed(rerank, client, text, before, texts)
        keyword.add(before, relevant, search_time)
        reranked.add(after, relevant, rerank_time)
        if number < in_full:
            console.print(comparison(query, before, after, titles, top))
            console.print(
                f"keyword search {search_time * 1000:.1f} ms, reranking {rerank_time * 1000:.1f} ms\n"
            )
    console.print(summary([keyword, reranked]))
    console.print("These passages were written to mislead keyword search. On real collections: make quality")


def introduction() -> str:
    """Return one line that says what the demo does."""
    passages, queries = len(load("corpus.jsonl")), len(load("queries.jsonl"))
    found = f"{CANDIDATES} results of keyword search"
    return f"Reranks {found} for {queries} queries over {passages} passages with {MODEL}."


def next_steps() -> str:
    """Return what to try next, as commands."""
    command = Path(sys.executable).with_name("sie-server")
    shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    return (
        f"Now open the playground: {shown} serve    then http://localhost:8080 in a browser\n"
        f'Try your own file:       {shown} score --query "YOUR QUERY" FILE    (JSON lines, CSV or text)\n'
        "All queries in full:     make demo ARGS=--all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Keyword search and reranking, side by side.")
    parser.add_argument("--top", type=int, default=5, choices=range(1, CANDIDATES + 1), metavar="N")
    parser.add_argument("--all", action="store_true", help="show the results of every query")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # ★ without Unicode
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a pipe or a file has no width
    console.print(introduction())
    with running_server(console) as url, SIEClient(url) as client:
        show(console, client, options.top, sys.maxsize if options.all else IN_FULL)
    console.print(next_steps())


if __name__ == "__main__":
    main()
