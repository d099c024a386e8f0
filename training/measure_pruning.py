"""How many relevant documents survive if the embedded model prunes BM25's first hundred, for docs/choose-a-model.md.

python -m training.choose_weight --data ../shared/data
python -m training.measure_pruning --data ../shared/data
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from training.build_mini_en import SCORER
from training.calibrate_default import read
from training.choose_weight import PARTS, SCORES, Scores

from sie_server.eval import Collection

KEEP = (10, 20, 30, 50)


def survivors(collection: Collection, scores: Scores, keep: int) -> tuple[int, int, int]:
    """Return the relevant candidates, and those among the first `keep` of the model and of BM25."""
    relevant = by_model = by_bm25 = 0
    for key, row in scores.found.items():
        dense, _, maxsim = scores.parts[key]
        order = np.argsort(
            -(SCORER["dense_weight"] * dense + SCORER["maxsim_weight"] * maxsim), kind="stable"
        )
        found = {place for place, name in enumerate(row) if collection.grades[key].get(name, 0) > 0}
        relevant += len(found)
        by_model += len(found & set(order[:keep].tolist()))
        by_bm25 += sum(place < keep for place in found)
    return relevant, by_model, by_bm25


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--scores", type=click.Path(path_type=Path), default=SCORES, show_default=True)
def main(data: Path, scores: Path) -> None:
    """Print the shares of relevant candidates that are kept by the model (by BM25)."""
    click.echo("\t".join(("kind", "relevant", *(f"keep {keep}" for keep in KEEP))))
    totals = np.zeros((len(KEEP), 3), dtype=int)
    for part in PARTS:
        collection, found = part.load(data), read(scores / f"{part.name}.json")
        counts = np.array([survivors(collection, found, keep) for keep in KEEP])
        totals += counts
        click.echo("\t".join((part.kind, str(counts[0][0]), *map(_shares, counts))))
    click.echo("\t".join(("all", str(totals[0][0]), *map(_shares, totals))))


def _shares(counts: np.ndarray) -> str:
    relevant, by_model, by_bm25 = counts
    return f"{by_model / relevant:.3f} ({by_bm25 / relevant:.3f})"


if __name__ == "__main__":
    main()
