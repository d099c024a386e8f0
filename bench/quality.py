"""Ranking quality with a real server: BM25's first hundred documents, reranked over HTTP with the SDK.

    python -m bench.quality --data ../shared/data --sets scifact,cosqa --limit 100

A server is started and stopped unless --url is given. Writes quality.json and quality.png.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from bench.datasets import REPORTED, TARGETS, Collection, bm25_candidates, load, mean_ndcg
from bench.local_server import running_server, wait_ready
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sie_sdk import Item, SIEClient

DEFAULT_MODEL = "sie/mini-en"
OUT = Path(__file__).resolve().parent / "out"
REFERENCE = Path(__file__).resolve().parents[1] / "training/quality.json"
CLIENTS = 4
START_WITHIN = 180.0  # seconds
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Outcome:
    """The figures of a collection; `target` and `reference` only if they apply to the same queries and model."""

    name: str
    queries: int
    documents_scored: int
    bm25: float
    reranked: float
    target: float | None
    reference: float | None
    seconds: float
    median_latency: float

    @property
    def passed(self) -> bool | None:
        return None if self.target is None else self.reranked >= self.target

    @property
    def seconds_per_query(self) -> float:
        return self.seconds / self.queries


def rerank_one(client: SIEClient, model: str, query: str, texts: dict[str, str]) -> tuple[list[str], float]:
    """Return the candidates in the server's order, and the seconds until the answer."""
    items = [Item(id=key, text=text) for key, text in texts.items()]
    start = time.perf_counter()
    result = client.score(model, Item(text=query), items)
    elapsed = time.perf_counter() - start
    ranking = [str(entry["item_id"]) for entry in result["scores"]]
    if sorted(ranking) != sorted(texts):
        raise click.ClickException("the server did not return every candidate exactly once")
    return ranking, elapsed


def rerank_all(
    client: SIEClient, model: str, collection: Collection, found: dict[str, list[str]]
) -> tuple[dict[str, list[str]], list[float]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rankings: dict[str, list[str]] = {}
    latencies: list[float] = []
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(CLIENTS) as pool:
        task = progress.add_task(collection.name, total=len(found))
        jobs = {
            pool.submit(
                rerank_one, client, model, collection.queries[query], texts_of(collection, row)
            ): query
            for query, row in found.items()
        }
        try:
            for job in as_completed(jobs):
                rankings[jobs[job]], latency = job.result()
                latencies.append(latency)
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # end at the first failure instead of after the last query
            raise
    return rankings, latencies


def texts_of(collection: Collection, documents: list[str]) -> dict[str, str]:
    return {document: collection.documents[document] for document in documents}


def evaluate(client: SIEClient, model: str, collection: Collection, limited: bool) -> Outcome:
    found = bm25_candidates(collection)
    start = time.perf_counter()
    rankings, latencies = rerank_all(client, model, collection, found)
    seconds = time.perf_counter() - start
    comparable = model == DEFAULT_MODEL and not limited
    return Outcome(
        name=collection.name,
        queries=len(found),
        documents_scored=sum(map(len, found.values())),
        bm25=round(mean_ndcg(found, collection), 4),
        reranked=round(mean_ndcg(rankings, collection), 4),
        target=TARGETS[collection.name] if comparable and collection.name in TARGETS else None,
        reference=reference_figure(collection.name) if comparable else None,
        seconds=round(seconds, 2),
        median_latency=round(statistics.median(latencies), 4),
    )


def reference_figure(name: str) -> float | None:
    """Return the reference implementation's result on all queries of the set, if it was measured."""
    if not REFERENCE.exists():
        return None
    figures = json.loads(REFERENCE.read_bytes())
    return float(figures[name]["reranked"]) if name in figures else None


def show(model: str, outcomes: list[Outcome]) -> None:
    table = Table(title=f"nDCG@10, {model} over BM25's first hundred", title_justify="left")
    for heading in (
        "set",
        "queries",
        "BM25",
        "reranked",
        "gain",
        "target",
        "",
        "reference",
        "s/query",
        "latency",
    ):
        table.add_column(heading, justify="left" if heading in ("set", "") else "right")
    for o in outcomes:
        verdict = {None: "", True: "[green]pass[/]", False: "[red]fail[/]"}[o.passed]
        figures = (
            f"{o.bm25:.3f}",
            f"{o.reranked:.3f}",
            f"{o.reranked - o.bm25:+.3f}",
            shown(o.target),
            verdict,
        )
        times = (f"{o.seconds_per_query:.3f}", f"{o.median_latency:.3f}")
        table.add_row(o.name, f"{o.queries:,}", *figures, shown(o.reference), *times)
    console.print(table)


def shown(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:.3f}"


def draw(model: str, outcomes: list[Outcome], path: Path) -> None:
    """Draw a pair of bars for each set, labelled with the figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.5 * len(outcomes), 3.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(outcomes))
    for shift, label, color, values in (
        (-0.2, "BM25", "#9aa5b1", [o.bm25 for o in outcomes]),
        (0.2, model, "#1f6feb", [o.reranked for o in outcomes]),
    ):
        bars = axes.bar([place + shift for place in places], values, 0.38, label=label, color=color)
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.set_xticks(list(places), [f"{o.name}\n{o.queries:,} queries" for o in outcomes], fontsize=8)
    axes.set_ylabel("nDCG@10")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    figure.savefig(path, dpi=160)


def write(model: str, outcomes: list[Outcome], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    derived = [{**asdict(o), "seconds_per_query": o.seconds_per_query, "passed": o.passed} for o in outcomes]
    report = {"model": model, "clients": CLIENTS, "sets": derived}
    (out / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw(model, outcomes, out / "quality.png")
    console.print(f"wrote quality.json and quality.png to {click.format_filename(out)}")


def measure(url: str, model: str, collections: list[Collection], limited: bool) -> list[Outcome]:
    name = model.partition("=")[0]
    outcomes = []
    with SIEClient(url) as client:
        for collection in collections:
            outcomes.append(evaluate(client, name, collection, limited))
            last = outcomes[-1]
            console.print(f"{last.name}: BM25 {last.bm25:.3f} → {last.reranked:.3f} in {last.seconds:.0f} s")
    return outcomes


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option(
    "--sets", default=",".join(REPORTED), show_default=True, help="also: fairytaleqa-val, cosqa-dev"
)
@click.option(
    "--limit", type=click.IntRange(1), help="Use the first queries of each set only, without targets."
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="ID or ID=SOURCE, as for `serve`.")
@click.option("--url", help="A running server; default: start a server.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(data: Path, sets: str, limit: int | None, model: str, url: str | None, out: Path) -> None:
    """Rerank whole collections with the server; the exit code is 1 if a target is missed."""
    try:
        collections = [load(data, name.strip()).first(limit) for name in sets.split(",")]
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from None
    if url:
        wait_ready(url.rstrip("/"))
        outcomes = measure(url.rstrip("/"), model, collections, limit is not None)
    else:
        with running_server(model) as own:
            outcomes = measure(own.url, model, collections, limit is not None)
    show(model.partition("=")[0], outcomes)
    write(model.partition("=")[0], outcomes, out)
    if any(outcome.passed is False for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
