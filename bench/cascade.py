"""Cost and quality of cascades against each of their models alone, measured alternately in one process.

    python -m bench.cascade --data ../shared/data --set scifact --queries 20

Two cascades prune with `sie/mini-en`. The last stage of `full` is the same model with more tokens per text, so quality
and cost are real. That of `base` is a cross-encoder of XLM-R base's shape with random weights, so only its time means
something.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
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
RANDOM = (BASE, "cascade/base")  # whose order means nothing
OUT = Path(__file__).resolve().parent / "out"
SYSTEMS: dict[str, tuple[str, dict[str, int]]] = {
    f"{MINI}, {SHORT} tokens": (MINI, {"max_seq_length": SHORT}),
    MINI: (MINI, {}),
    f"cascade: {MINI} with {SHORT} tokens, {KEEP} documents to {MINI}": ("cascade/full", {}),
    BASE: (BASE, {}),
    f"cascade: {MINI}, {KEEP} documents to {BASE}": ("cascade/base", {}),
}


def write_models(folder: Path) -> None:
    """Write the random model and both cascades."""
    write_checkpoint(XLM_R_BASE, folder / BASE)
    stages = {
        "full": [{"model": MINI, "keep": KEEP, "options": {"max_seq_length": SHORT}}, {"model": MINI}],
        "base": [{"model": MINI, "keep": KEEP}, {"model": BASE}],
    }
    for name, found in stages.items():
        entry = {"id": f"cascade/{name}", "stages": found}
        (folder / f"{name}.yaml").write_text(json.dumps(entry), encoding="utf-8")  # JSON is YAML


async def measure(
    collection: Collection, found: dict[str, list[str]], folder: Path, threads: int, base_queries: int
) -> dict[str, dict[str, Answer]]:
    """Score every query with every system; the systems alternate, and each query starts with another one.

    The systems with the random model score the first `base_queries` only.
    """
    config = ServerConfig(models_dir=str(folder), models_dir_poll_s=0, offline=True, threads=threads)
    config = msgspec.structs.replace(config, document_cache_mb=0)  # every system reads every document
    scorer = LocalScorer(config)
    answers: dict[str, dict[str, Answer]] = {name: {} for name in SYSTEMS}
    try:
        for model, options in SYSTEMS.values():
            await scorer.identity(model, options)
        names = list(SYSTEMS)
        with click.progressbar(collection.queries.items(), label=collection.name) as queries:
            for number, (key, text) in enumerate(queries):
                texts = [collection.documents[document] for document in found[key]]
                names = [*names[1:], names[0]]
                for name in names:
                    model, options = SYSTEMS[name]
                    if model in RANDOM and number >= base_queries:
                        continue
                    answers[name][key] = await scorer.score(model, text, texts, options)
    finally:
        await scorer.close()
    return answers


def rows(
    collection: Collection, found: dict[str, list[str]], answers: dict[str, dict[str, Answer]]
) -> list[dict[str, object]]:
    """Return quality, median time and tokens of each system; times also as a share of the last stage alone."""
    median = {name: statistics.median(a.seconds for a in each.values()) for name, each in answers.items()}
    result = []
    for name, each in answers.items():
        model, _ = SYSTEMS[name]
        rankings = {key: [found[key][place] for place in answer.order] for key, answer in each.items()}
        alone = BASE if model in RANDOM else MINI
        result.append(
            {
                "system": name,
                "ndcg@10": None if model in RANDOM else round(mean_ndcg(rankings, collection), 4),
                "p50_ms": round(median[name] * 1e3),
                "of_the_last_stage_alone": round(median[name] / median[alone], 3),
                "tokens": round(statistics.mean(answer.tokens for answer in each.values())),
            }
        )
    return result


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--set", "name", default="scifact", show_default=True)
@click.option("--queries", type=int, default=20, show_default=True)
@click.option("--base-queries", type=int, default=3, show_default=True, help="Queries for the large model.")
@click.option("--threads", type=int, default=0, help="CPU threads; default: one per core.")
def main(data: Path, name: str, queries: int, base_queries: int, threads: int) -> None:
    """Compare two cascades with their models, on the first queries of a set."""
    collection = load(data, name).first(queries)
    found = bm25_candidates(collection)
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        answers = asyncio.run(measure(collection, found, Path(folder), threads, base_queries))
    results = rows(collection, found, answers)
    table = Table("system", "ndcg@10", "p50, ms", "of the last stage alone", "tokens per query")
    for row in results:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    Console(width=140).print(table)
    OUT.mkdir(exist_ok=True)
    about = {"set": name, "queries": len(collection.queries), "bm25": round(mean_ndcg(found, collection), 4)}
    report = {"machine": describe(), **about, "systems": results}
    (OUT / "cascade.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
