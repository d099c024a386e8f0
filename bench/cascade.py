"""Cost and quality of cascades against each of their models alone, measured alternately in one process.

    python -m bench.cascade --set cosqa --queries 20
    python -m bench.cascade --set cosqa --queries 20 --strong my/model=DIRECTORY --keep 30 --keep 50

Cascades prune with `sie/mini-en`. With `--strong` the last stage is that model. Without it there are two cascades: the
last stage of `full` is `sie/mini-en` with more tokens per text, so quality and cost are real; that of `base` is a
cross-encoder of XLM-R base's shape with random weights, so only its time means something.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
from bench.datasets import Collection, bm25_candidates, load, mean_ndcg
from bench.machine import describe
from bench.workload import XLM_R_BASE, write_checkpoint
from rich.console import Console
from rich.table import Table

from sie_server.config import ServerConfig
from sie_server.offline.scorers import Answer, LocalScorer

MINI, SHORT, KEEP = "sie/mini-en", 64, 30
BASE = "random/base"
OUT = Path(__file__).resolve().parent / "out"


@dataclass(frozen=True)
class System:
    """A model, or a cascade, which has stages."""

    label: str
    model: str
    alone: str  # the model of its last stage
    options: dict[str, int] = field(default_factory=dict)
    stages: list[dict[str, object]] = field(default_factory=list)

    @property
    def is_random(self) -> bool:
        return self.alone == BASE


def default_systems() -> list[System]:
    """Return the cascades `full` and `base`, and their models."""
    short = {"max_seq_length": SHORT}
    full: list[dict[str, object]] = [{"model": MINI, "keep": KEEP, "options": short}, {"model": MINI}]
    cascade = f"cascade: {MINI} with {SHORT} tokens, {KEEP} documents to {MINI}"
    return [
        System(f"{MINI}, {SHORT} tokens", MINI, MINI, short),
        System(MINI, MINI, MINI),
        System(cascade, "cascade/full", MINI, stages=full),
        System(BASE, BASE, BASE),
        _pruned(BASE, KEEP, "cascade/base"),
    ]


def systems_with(strong: str, keeps: tuple[int, ...]) -> list[System]:
    """Return the cascades that end with a model, one for each number of kept documents, and both models."""
    cascades = [_pruned(strong, keep, f"cascade/keep-{keep}") for keep in keeps]
    return [System(MINI, MINI, strong), System(strong, strong, strong), *cascades]


def _pruned(last: str, keep: int, name: str) -> System:
    stages: list[dict[str, object]] = [{"model": MINI, "keep": keep}, {"model": last}]
    return System(f"cascade: {MINI}, {keep} documents to {last}", name, last, stages=stages)


def write_models(folder: Path, systems: list[System]) -> None:
    """Write the random model, if it is measured, and the cascades."""
    if any(system.is_random for system in systems):
        write_checkpoint(XLM_R_BASE, folder / BASE)
    for system in systems:
        if system.stages:
            entry = {"id": system.model, "stages": system.stages}
            path = folder / f"{system.model.replace('/', '--')}.yaml"
            path.write_text(json.dumps(entry), encoding="utf-8")  # JSON is YAML


def rounds(queries: list[str], seconds: float) -> Iterator[str]:
    """Yield queries as long as one more that takes as long as the longest so far fits into the time."""
    started, longest = time.monotonic(), 0.0
    with click.progressbar(queries, label="queries") as progress:
        for query in progress:
            before = time.monotonic()
            if before - started + longest > seconds:
                click.echo("\nthe time is up: fewer queries are measured", err=True)
                return
            yield query
            longest = max(longest, time.monotonic() - before)


async def measure(
    systems: list[System],
    collection: Collection,
    found: dict[str, list[str]],
    config: ServerConfig,
    seconds: float,
    base_queries: int,
) -> dict[str, dict[str, Answer]]:
    """Score every query with every system; the systems alternate, and each query starts with another one.

    The systems with the random model score the first `base_queries` only.
    """
    scorer = LocalScorer(config)
    answers: dict[str, dict[str, Answer]] = {system.label: {} for system in systems}
    try:
        for system in systems:
            await scorer.identity(system.model, system.options)
        order = list(systems)
        for number, key in enumerate(rounds(list(collection.queries), seconds)):
            texts = [collection.documents[document] for document in found[key]]
            order = [*order[1:], order[0]]
            for system in order:
                if system.is_random and number >= base_queries:
                    continue
                query = collection.queries[key]
                answers[system.label][key] = await scorer.score(system.model, query, texts, system.options)
    finally:
        await scorer.close()
    return answers


def rows(
    systems: list[System],
    collection: Collection,
    found: dict[str, list[str]],
    answers: dict[str, dict[str, Answer]],
) -> list[dict[str, object]]:
    """Return quality, median time, pairs and tokens of each system; times also as a share of the last stage alone."""
    median = {name: statistics.median(a.seconds for a in each.values()) for name, each in answers.items()}
    alone = {system.model: median[system.label] for system in systems if not system.options}
    result: list[dict[str, object]] = []
    for system in systems:
        each = answers[system.label].items()
        rankings = {key: [found[key][place] for place in answer.order] for key, answer in each}
        pairs = (sum(stage.texts for stage in a.stages) or len(a.scores) for _, a in each)
        result.append(
            {
                "system": system.label,
                "queries": len(rankings),
                "ndcg@10": None if system.is_random else round(mean_ndcg(rankings, collection), 4),
                "p50_ms": round(median[system.label] * 1e3),
                "of_the_last_stage_alone": round(median[system.label] / alone[system.alone], 3),
                "pairs": round(statistics.mean(pairs)),
                "tokens": round(statistics.mean(answer.tokens for _, answer in each)),
            }
        )
    return result


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--set", "name", default="cosqa", show_default=True)
@click.option("--queries", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, help="Draw the queries at random; default: the first ones.")
@click.option("--base-queries", type=int, default=3, show_default=True, help="Queries for the random model.")
@click.option("--strong", metavar="ID[=SOURCE]", help="The last stage, instead of both cascades above.")
@click.option("--keep", "keeps", type=int, multiple=True, default=(KEEP,), help="With --strong; repeatable.")
@click.option(
    "--seconds",
    type=float,
    default=300,
    show_default=True,
    help="Time for the queries; loads and the first stage take another minute.",
)
@click.option("--threads", type=int, default=0, help="CPU threads; default: one per core.")
def main(
    data: Path,
    name: str,
    queries: int,
    seed: int | None,
    base_queries: int,
    strong: str | None,
    keeps: tuple[int, ...],
    seconds: float,
    threads: int,
) -> None:
    """Compare cascades with their models, on queries of a set."""
    whole = load(data, name)
    collection = whole.first(queries) if seed is None else whole.sample(queries, seed)
    found = bm25_candidates(collection)
    systems = systems_with(strong.partition("=")[0], keeps) if strong else default_systems()
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), systems)
        config = ServerConfig(
            models_dir=folder,
            models_dir_poll_s=0,
            offline=True,
            threads=threads,
            model=(strong,) if strong else (),
        )
        config = msgspec.structs.replace(config, document_cache_mb=0)  # every system reads every document
        answers = asyncio.run(measure(systems, collection, found, config, seconds, base_queries))
    measured = collection.first(max(map(len, answers.values())))
    show(name, measured, found, rows(systems, measured, found, answers))


def show(
    name: str, measured: Collection, found: dict[str, list[str]], results: list[dict[str, object]]
) -> None:
    """Print the table, and write it to bench/out/cascade.json."""
    table = Table("system", "queries", "ndcg@10", "p50, ms", "of the last stage alone", "pairs", "tokens")
    for row in results:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    console = Console(width=140)
    first = {query: found[query] for query in measured.queries}
    before = round(mean_ndcg(first, measured), 4)
    console.print(table)
    console.print(f"{name}, {len(measured.queries)} queries; BM25 alone: {before}")
    OUT.mkdir(exist_ok=True)
    about = {"set": name, "queries": len(measured.queries), "bm25": before}
    report = {"machine": describe(), **about, "systems": results}
    (OUT / "cascade.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
