"""Measure the reference scorer on BM25's first hundred documents and write the figures for the model card.

    python -m training.measure_reference --data ../shared/data

Documents are encoded once per collection, so the run takes minutes, not hours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from bench.datasets import REPORTED, SELECTION, Collection, bm25_candidates, load, mean_ndcg
from training.build_mini_en import OUTPUT, QUALITY
from training.reference_scorer import Encoded, ReferenceScorer

CHUNK = 256


def encode_with_progress(scorer: ReferenceScorer, texts: dict[str, str], label: str) -> dict[str, Encoded]:
    by_length = sorted(texts, key=lambda key: len(texts[key]))  # similar lengths need little padding
    encoded: dict[str, Encoded] = {}
    with click.progressbar(range(0, len(by_length), CHUNK), label=f"{label}: encoding") as starts:
        for start in starts:
            keys = by_length[start : start + CHUNK]
            encoded.update(zip(keys, scorer.encode([texts[key] for key in keys]), strict=True))
    return encoded


def rerank(
    scorer: ReferenceScorer, collection: Collection, found: dict[str, list[str]]
) -> dict[str, list[str]]:
    used = {document for row in found.values() for document in row}
    documents = encode_with_progress(
        scorer, {key: collection.documents[key] for key in used}, collection.name
    )
    queries = scorer.encode(list(collection.queries.values()), scorer.settings["query_max_seq_length"])
    rankings = {}
    for key, query in zip(collection.queries, queries, strict=True):
        scores = {document: scorer.score_encoded(query, documents[document]) for document in found[key]}
        # the sort is stable, so ties keep BM25's order
        rankings[key] = sorted(found[key], key=lambda document: -scores[document])
    return rankings


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option(
    "--model", type=click.Path(path_type=Path), default=OUTPUT, help="Folder of the embedded model."
)
@click.option("--sets", default=",".join((*REPORTED, *SELECTION)), show_default=True)
@click.option("--limit", type=int, help="Use the first queries of each set only, and write nothing.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--threads", type=int, help="Number of CPU threads; default: torch's.")
def main(data: Path, model: Path, sets: str, limit: int | None, dtype: str, threads: int | None) -> None:
    """Measure nDCG@10 of BM25 and of the reference scorer on each set."""
    if threads:
        torch.set_num_threads(threads)
    scorer = ReferenceScorer(model, getattr(torch, dtype))
    figures: dict[str, dict[str, Any]] = {}
    for name in sets.split(","):
        collection = load(data, name).first(limit)
        found = bm25_candidates(collection)
        figures[name] = {
            "queries": len(collection.queries),
            "bm25": round(mean_ndcg(found, collection), 4),
            "reranked": round(mean_ndcg(rerank(scorer, collection, found), collection), 4),
        }
        click.echo(f"{name}: {figures[name]}")
    if limit is None:
        QUALITY.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
