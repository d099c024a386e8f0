"""Rankings as TREC runs, which trec_eval and other tools read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from sie_server.eval.first_stage import Candidates
from sie_server.eval.results import Scored


def write_run(folder: Path, name: str, candidates: Candidates, scored: Scored | None) -> Path:
    """Write the first stage, or a model's ranking, as `SET--MODEL.trec`; return the path."""
    label = scored.name if scored else candidates.name
    path = folder / f"{quote(name, safe='')}--{quote(label, safe='@:+')}.trec"
    with path.open("w", encoding="utf-8") as file:
        for query, documents in candidates.ranked.items():
            if scored is None:
                order, scores = list(range(len(documents))), candidates.scores[query]
            elif query in scored.answers:
                order, scores = scored.answers[query].order, scored.answers[query].scores
            else:
                continue
            ranked = falling([scores[place] for place in order])
            for rank, (place, score) in enumerate(zip(order, ranked, strict=True), 1):
                file.write(f"{query} Q0 {documents[place]} {rank} {score} {quote(label, safe='/@:+')}\n")
    return path


def falling(scores: Sequence[float]) -> Iterator[str]:
    """Yield the scores of a ranking so that each is below the one before as a number of 32 bits.

    trec_eval reads such numbers, and orders equal ones by id.
    """
    last = np.float32(np.inf)
    for score in scores:
        value = np.float32(score)
        if value >= last:
            value = np.nextafter(last, np.float32(-np.inf))
        last = value
        yield str(value)
