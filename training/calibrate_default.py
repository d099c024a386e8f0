"""Fit the calibration that the embedded model ships with, from the scores that training.choose_weight has kept.

    python -m training.choose_weight --data ../shared/data
    python -m training.calibrate_default --data ../shared/data

The pairs are all candidates of the five collections. Candidates without a judgment count as not relevant. Every
collection has the same number of queries, so none outweighs the others. Quality is that of queries that were held out.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from training.build_mini_en import SCORER
from training.choose_weight import PARTS, SCORES, Scores

from sie_server.eval import Collection
from sie_server.eval.calibration.fit import Quality, fit, held_out, quality
from sie_server.eval.calibration.pairs import Pairs
from sie_server.eval.calibration.threshold import threshold_for

FOLDS, SEED, PRECISION = 5, 0, 0.5


def read(path: Path) -> Scores:
    """Read the scores of a collection. Raises ClickException."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise click.ClickException(f"{path} does not exist; run training.choose_weight first") from None
    return Scores(content["found"], {key: np.array(row) for key, row in content["parts"].items()})


def pairs_of(collections: list[tuple[Collection, Scores]]) -> Pairs:
    """Return all candidates of all queries, with the scores of the model as it ships."""
    raw, relevant, query = [], [], []
    number = 0
    for collection, scores in collections:
        for key, row in scores.found.items():
            dense, _, maxsim = scores.parts[key]
            raw += (SCORER["dense_weight"] * dense + SCORER["maxsim_weight"] * maxsim).tolist()
            relevant += [collection.grades[key].get(document, 0) > 0 for document in row]
            query += [number] * len(row)
            number += 1
    return Pairs(np.array(raw), np.array(relevant), np.array(query))


def show(name: str, found: Quality) -> None:
    """Print the Brier score and the expected calibration error."""
    click.echo(f"{name}\tBrier {found.brier:.4f}\tECE {found.ece:.4f}")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--scores", type=click.Path(path_type=Path), default=SCORES, show_default=True)
def main(data: Path, scores: Path) -> None:
    """Print the calibration, its quality and a threshold."""
    pairs = pairs_of([(part.load(data), read(scores / f"{part.name}.json")) for part in PARTS])
    predicted = held_out(pairs, "platt", FOLDS, SEED)
    click.echo(f"{len(pairs)} pairs, {int(pairs.relevant.sum())} relevant, {pairs.query.max() + 1} queries")
    show("raw, cut to 0 … 1", quality(np.clip(pairs.raw, 0, 1), pairs.relevant))
    show("Platt, held out", quality(predicted, pairs.relevant))
    show("isotonic, held out", quality(held_out(pairs, "isotonic", FOLDS, SEED), pairs.relevant))
    found = threshold_for("precision", PRECISION, predicted, pairs, SEED)
    for name, share in (("precision", found.precision), ("recall", found.recall)):
        click.echo(
            f"{name} at {found.probability:.4f}\t{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"
        )
    calibration = fit(pairs, "platt")
    click.echo(f"calibration: {{slope: {calibration.slope:.4g}, intercept: {calibration.intercept:.4g}}}")


if __name__ == "__main__":
    main()
