"""Metrics of rankings, computed by ir-measures with trec_eval's definitions.

Gains are linear: the grade itself. A judged query without a ranking counts as 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sie_server.errors import shown
from sie_server.eval.data.collection import Grades
from sie_server.offline.errors import OfflineError, needed

DEFAULT = ("ndcg@10", "mrr@10", "recall@100", "map", "p@1")
NAMES = {"ndcg": "nDCG", "mrr": "RR", "recall": "R", "map": "AP", "p": "P"}
MUST_HAVE_DEPTH = ("recall", "p")
Rankings = Mapping[str, Sequence[str]]  # query → documents, the most relevant first


def parse_metrics(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas, such as `ndcg@10,map`.

    Raises:
        OfflineError: a name is unknown.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    for name in names:
        _measure_name(name)
    if not names:
        raise OfflineError(f"--metrics is empty; name some of {', '.join(DEFAULT)}")
    return names


def _measure_name(name: str) -> str:
    found = re.fullmatch(r"([a-z]+)(?:@([1-9]\d{0,5}))?", name)
    if found is None or found[1] not in NAMES:
        raise OfflineError(
            f"--metrics: unknown metric {shown(name)}; known are {', '.join(NAMES)}, with @DEPTH as in ndcg@10"
        )
    if found[2] is None and found[1] in MUST_HAVE_DEPTH:
        raise OfflineError(f"--metrics: {name} needs a depth, for example {name}@10")
    return NAMES[found[1]] + (f"@{found[2]}" if found[2] else "")


def per_query(names: Sequence[str], grades: Grades, rankings: Rankings) -> dict[str, dict[str, float]]:
    """Return the values by metric and query, for every judged query.

    Raises:
        OfflineError: ir-measures is not installed.
    """
    library: Any = needed("ir_measures")
    measures = {library.parse_measure(_measure_name(name)): name for name in names}
    # places instead of scores, because the library orders equal scores by id
    run = {
        query: {document: float(-place) for place, document in enumerate(ranking)}
        for query, ranking in rankings.items()
        if query in grades and ranking
    }
    qrels = {query: dict(found) for query, found in grades.items()}
    values = {name: dict.fromkeys(grades, 0.0) for name in names}
    for one in library.iter_calc(list(measures), qrels, run):
        values[measures[one.measure]][one.query_id] = float(one.value)
    return values


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over queries."""
    return sum(values.values()) / len(values) if values else 0.0
