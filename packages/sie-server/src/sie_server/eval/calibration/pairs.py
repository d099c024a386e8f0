"""The judged pairs that a calibration is fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sie_server.eval.data.collection import Collection, DataError
from sie_server.eval.first_stage import Candidates
from sie_server.offline.scorers import Answer

Unjudged = Literal["leave-out", "irrelevant"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Raw scores of pairs, whether they are relevant, and the number of their query."""

    raw: Floats
    relevant: NDArray[np.bool_]
    query: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.raw)

    def of(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.raw[chosen], self.relevant[chosen], self.query[chosen])


def judged_pairs(
    scored: Sequence[tuple[Collection, Candidates, Mapping[str, Answer]]], unjudged: Unjudged
) -> Pairs:
    """Return the pairs of all sets that have a judgment; with `irrelevant` all candidates.

    Raises:
        DataError: the pairs have one class only.
    """
    raw, relevant, query = [], [], []
    number = 0
    for collection, candidates, answers in scored:
        for name, answer in answers.items():
            grades = collection.grades[name]
            for document, score in zip(candidates.ranked[name], answer.scores, strict=True):
                if document in grades or unjudged == "irrelevant":
                    raw.append(score)
                    relevant.append(grades.get(document, 0) > 0)
                    query.append(number)
            number += 1
    pairs = Pairs(
        np.array(raw, dtype=np.float64), np.array(relevant, dtype=bool), np.array(query, dtype=np.int64)
    )
    _check_classes(pairs)
    return pairs


def _check_classes(pairs: Pairs) -> None:
    if not pairs.relevant.any():
        raise DataError(
            "no judged relevant document is among the candidates; raise --depth, or use another first stage"
        )
    if pairs.relevant.all():
        raise DataError(
            "the judged candidates have one class only: none has the grade 0. Judge some that are not relevant, or "
            "count candidates without a judgment as not relevant with --unjudged irrelevant"
        )
