"""Choose the weight of the cosine in the embedded model's score, on parts of the training collections.

    python -m training.choose_weight --data ../shared/data

Five collections of different kinds count equally: questions and answers of FAQs, questions and abstracts, shell
commands, pages of command-line help, and questions about passages. Their idf table comes from other collections, so it
has not seen them. Nothing else is chosen here, and the report sets are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from bench.datasets import Collection, bm25_candidates, mean_ndcg
from tokenizers import Tokenizer
from training.build_mini_en import OUTPUT
from training.idf import (
    count_documents,
    inverse_document_frequency,
    read_documents,
    template_ids,
    token_weights,
)
from training.measure_reference import encode_with_progress
from training.reference_scorer import Encoded, ReferenceScorer

from sie_server.eval import load

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5)
QUERIES, SEED = 200, 0
SCORES = Path(__file__).resolve().parent / "out/choose_weight"
IDF_FROM = ("arxiv-title-abstract", "covidqa", "fairytaleqa-train", "medquad", "nq-gold")
ENGLISH = {"the", "of", "to", "is", "and", "in", "for", "are", "you", "that", "it", "be", "with"}
Weighted = dict[float, float]  # weight → nDCG@10


def is_english(text: str) -> bool:
    """Return whether a text has several English function words."""
    return len(ENGLISH & set(text.lower().split())) >= 3


@dataclass(frozen=True)
class Part:
    """A collection of `train/`, without the documents in other languages."""

    kind: str
    name: str
    keep: Callable[[str, str], bool] = lambda document, text: True

    def load(self, data: Path) -> Collection:
        """Read the collection, its English documents and a sample of the queries that they answer."""
        whole = load(data / "train" / self.name)
        documents = {key: text for key, text in whole.documents.items() if self.keep(key, text)}
        grades = {
            query: {key: grade for key, grade in found.items() if key in documents}
            for query, found in whole.grades.items()
        }
        queries = {query: text for query, text in whole.queries.items() if any(grades[query].values())}
        part = replace(
            whole, documents=documents, queries=queries, grades={query: grades[query] for query in queries}
        )
        return part.sample(QUERIES, SEED)


PARTS = (
    Part("FAQ", "covidfaq", lambda key, text: is_english(text)),
    Part("science", "pubmedqa"),
    Part("code", "nl2bash"),
    Part("how-to", "tldr", lambda key, text: key.startswith("en/")),
    Part("reading", "squad-dev"),
)


def unseen_weights(data: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """Return token weights from collections that are no parts of the selection. # [vocab]"""
    texts = list(dict.fromkeys(text for name in IDF_FROM for text in read_documents(data / "train" / name)))
    idf = inverse_document_frequency(count_documents(tokenizer, texts), len(texts))
    return torch.from_numpy(token_weights(idf, template_ids(tokenizer)))


def parts_of_scores(query: Encoded, documents: list[Encoded]) -> np.ndarray:
    """Return cosine and MaxSim of each document. # [2, documents]"""
    total = float(query.weights.sum())
    dense = [float(query.mean @ document.mean) for document in documents]
    best = [(query.tokens @ document.tokens.T).amax(dim=1) for document in documents]
    maxsim = [float(query.weights @ one) / total if total > 0 else 0.0 for one in best]
    return np.array([dense, maxsim])


@dataclass(frozen=True)
class Scores:
    """The candidates of BM25 for a collection, and the parts of their scores.

    The parts of a query are the cosine, MaxSim with the unseen token weights, and MaxSim with those of the model.
    """

    found: dict[str, list[str]]
    parts: dict[str, np.ndarray]  # by query: # [3, documents]

    def ndcg(self, collection: Collection) -> tuple[float, Weighted]:
        """Return nDCG@10 of BM25, and of the model by weight."""
        by_weight = {weight: mean_ndcg(_ranked(self, weight), collection) for weight in WEIGHTS}
        return mean_ndcg(self.found, collection), by_weight


def measure(scorer: ReferenceScorer, collection: Collection, unseen: torch.Tensor) -> Scores:
    """Score the candidates of every query, with the `unseen` weights of tokens and with those of the model."""
    found = bm25_candidates(collection)
    used = {key for row in found.values() for key in row}
    documents = encode_with_progress(
        scorer, {key: collection.documents[key] for key in used}, collection.name
    )
    shipped = scorer.encode(list(collection.queries.values()))
    parts = {}
    for (key, text), own in zip(collection.queries.items(), shipped, strict=True):
        scorer.token_weights, table = unseen, scorer.token_weights
        [query] = scorer.encode([text])
        scorer.token_weights = table
        candidates = [documents[document] for document in found[key]]
        parts[key] = np.array([*parts_of_scores(query, candidates), parts_of_scores(own, candidates)[1]])
    return Scores(found, parts)


def kept(folder: Path, name: str, make: Callable[[], Scores]) -> Scores:
    """Return the scores of a collection from its file in `folder`, which is written if it does not exist."""
    path = folder / f"{name}.json"
    if path.exists():
        content = json.loads(path.read_bytes())
        return Scores(content["found"], {key: np.array(row) for key, row in content["parts"].items()})
    scores = make()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"found": scores.found, "parts": {key: row.tolist() for key, row in scores.parts.items()}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return scores


def _ranked(scores: Scores, weight: float) -> dict[str, list[str]]:
    rankings = {}
    for key, row in scores.found.items():
        dense, maxsim, _ = scores.parts[key]
        order = np.argsort(-(weight * dense + maxsim), kind="stable")
        rankings[key] = [row[place] for place in order]
    return rankings


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--model", type=click.Path(path_type=Path), default=OUTPUT, help="Folder of the model.")
@click.option("--threads", type=int, help="Number of CPU threads; default: torch's.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    default=SCORES,
    help="Folder of scores; existing ones are used.",
)
def main(data: Path, model: Path, threads: int | None, dtype: str, scores: Path) -> None:
    """Print nDCG@10 by weight for each collection, and the mean."""
    if threads:
        torch.set_num_threads(threads)
    scorer = ReferenceScorer(model, getattr(torch, dtype))
    unseen = unseen_weights(data, scorer.tokenizer)
    figures: list[Weighted] = []
    click.echo("\t".join(("kind", "collection", "queries", "documents", "BM25", *map(str, WEIGHTS))))
    for part in PARTS:
        collection = part.load(data)
        found = kept(scores, part.name, partial(measure, scorer, collection, unseen))
        bm25, by_weight = found.ndcg(collection)
        figures.append(by_weight)
        counts = (len(collection.queries), len(collection.documents))
        values = (f"{value:.4f}" for value in (bm25, *by_weight.values()))
        click.echo("\t".join((part.kind, part.name, *map(str, counts), *values)))
    means = [float(np.mean([each[weight] for each in figures])) for weight in WEIGHTS]
    click.echo("\t".join(("mean", "", "", "", "", *(f"{value:.4f}" for value in means))))


if __name__ == "__main__":
    main()
