"""Ranking quality with a real server: BM25's first hundred documents, reranked over HTTP with the SDK.

    python -m bench.quality --data ../shared/data --sets scifact,cosqa --limit 100

A server is started and stopped unless --url is given. Writes quality.json and quality.png. The measurement is that of
`sie-server eval`; this command adds the targets of the embedded model.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from bench.datasets import CANDIDATES, METRIC, REPORTED, TARGETS, load
from bench.local_server import running_server, wait_ready
from rich.console import Console
from rich.table import Table

from sie_server.eval import Collection, OfflineError, Report, evaluate
from sie_server.eval.results import SetResult
from sie_server.offline.progress import Reporter

DEFAULT_MODEL = "sie/mini-en"
OUT = Path(__file__).resolve().parent / "out"
REFERENCE = Path(__file__).resolve().parents[1] / "training/quality.json"
CLIENTS = 4
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
    pairs_per_s: float
    median_latency: float  # seconds

    @property
    def passed(self) -> bool | None:
        return None if self.target is None else self.reranked >= self.target


def outcome(found: SetResult, comparable: bool) -> Outcome:
    (model,) = found.models
    (change,) = model.changes
    return Outcome(
        name=found.name,
        queries=found.queries,
        documents_scored=model.pairs,
        bm25=round(change.before, 4),
        reranked=round(change.after, 4),
        target=TARGETS.get(found.name) if comparable else None,
        reference=reference_figure(found.name) if comparable else None,
        pairs_per_s=round(model.pairs_per_s, 1),
        median_latency=round(model.latency_p50_ms / 1e3, 4),
    )


def reference_figure(name: str) -> float | None:
    """Return the reference implementation's result on all queries of the set, if it was measured."""
    if not REFERENCE.exists():
        return None
    figures = json.loads(REFERENCE.read_bytes())
    return float(figures[name]["reranked"]) if name in figures else None


def show(model: str, outcomes: list[Outcome]) -> None:
    table = Table(title=f"nDCG@10, {model} over BM25's first hundred", title_justify="left")
    headings = ("set", "queries", "BM25", "reranked", "gain", "target", "", "reference", "pairs/s", "latency")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("set", "") else "right")
    for o in outcomes:
        verdict = {None: "", True: "[green]pass[/]", False: "[red]fail[/]"}[o.passed]
        figures = (f"{o.bm25:.3f}", f"{o.reranked:.3f}", f"{o.reranked - o.bm25:+.3f}", shown(o.target))
        times = (f"{o.pairs_per_s:,.0f}", f"{o.median_latency:.3f}")
        table.add_row(o.name, f"{o.queries:,}", *figures, verdict, shown(o.reference), *times)
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
    derived = [{**asdict(o), "passed": o.passed} for o in outcomes]
    report = {"model": model, "clients": CLIENTS, "sets": derived}
    (out / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw(model, outcomes, out / "quality.png")
    console.print(f"wrote quality.json and quality.png to {click.format_filename(out)}")


def measure(url: str, model: str, collections: list[Collection]) -> Report:
    return evaluate(
        collections,
        [model],
        endpoint=url,
        depth=CANDIDATES,
        metrics=[METRIC],
        concurrency=CLIENTS,
        reporter=Reporter(console),
    )


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
    name = model.partition("=")[0]
    try:
        collections = [load(data, each.strip()).first(limit) for each in sets.split(",")]
        if url:
            wait_ready(url.rstrip("/"))
            report = measure(url.rstrip("/"), name, collections)
        else:
            with running_server(model) as own:
                report = measure(own.url, name, collections)
    except OfflineError as error:
        raise click.ClickException(f"{error}; --data is the directory with the folder `eval`") from None
    comparable = name == DEFAULT_MODEL and limit is None
    outcomes = [outcome(found, comparable) for found in report.sets]
    show(name, outcomes)
    write(name, outcomes, out)
    if any(each.passed is False for each in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
