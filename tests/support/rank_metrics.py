"""Metrics of a ranking after their definitions, without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    """nDCG with linear gain: a grade is divided by log2 of its place, counted from 2."""

    def discounted(gains: Sequence[int]) -> float:
        return sum(max(gain, 0) / math.log2(place) for place, gain in enumerate(gains[:depth], 2))

    ideal = discounted(sorted(grades.values(), reverse=True))
    return discounted([grades.get(document, 0) for document in ranking]) / ideal if ideal else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    for place, document in enumerate(ranking[:depth], 1):
        if grades.get(document, 0) > 0:
            return 1 / place
    return 0.0


def recall(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(ranking[:depth])) / len(relevant)


def precision(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    return sum(grades.get(document, 0) > 0 for document in ranking[:depth]) / depth


def average_precision(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    relevant = sum(grade > 0 for grade in grades.values())
    found, total = 0, 0.0
    for place, document in enumerate(ranking, 1):
        if grades.get(document, 0) > 0:
            found += 1
            total += found / place
    return total / relevant
