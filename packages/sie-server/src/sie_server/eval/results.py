"""From answers to figures: a set's table, the queries that changed most, latency, throughput, truncation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from sie_server.eval.data.collection import Collection
from sie_server.eval.first_stage import Candidates
from sie_server.eval.metrics import mean, per_query
from sie_server.eval.statistics import Change, Test, changes, mean_tau
from sie_server.offline.scorers import Answer

MOST_CHANGED = 10  # queries
SHOWN_TEXT = 300  # characters of a text in the report
FEW_QUERIES = 30


class QueryChange(msgspec.Struct, frozen=True):
    """A query whose ranking improved or got worse, by the first metric."""

    query: str
    text: str
    before: float
    after: float
    first_before: str  # the text of the first document
    first_after: str


class Truncation(msgspec.Struct, frozen=True):
    """Documents that a model did not read to their end, and the quality that this costs."""

    documents: int  # query-document pairs
    queries: int  # with such documents
    windows: Change | None  # these queries: truncated against read in windows; None: not measured


class StageFigures(msgspec.Struct, frozen=True):
    """The reading of one stage of a cascade per query, on average."""

    model: str
    documents: float
    tokens: float


class ModelResult(msgspec.Struct, frozen=True):
    """One model on one set."""

    model: str
    score_type: str
    changes: list[Change]  # by metric: the first stage against the model
    latency_p50_ms: float  # of one request with the candidates of a query
    latency_p95_ms: float
    pairs: int
    pairs_per_s: float
    truncation: Truncation
    other_format: Change | None  # this number format against another one; None: not measured
    gained: list[QueryChange]
    lost: list[QueryChange]
    per_query: dict[str, dict[str, float]]  # metric → query → value
    tokens: float = 0.0  # per query, on average
    stages: list[StageFigures] = []  # of a cascade
    other_format_tau: float | None = None  # Kendall's tau of the orders in both formats, mean over queries


class SetResult(msgspec.Struct, frozen=True):
    """All models on one set."""

    name: str
    queries: int
    documents: int
    first_stage: str
    before: dict[str, float]  # by metric
    models: list[ModelResult]
    notes: list[str]
    before_per_query: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Scored:
    """The answers of a model by query; queries without candidates have none."""

    name: str
    answers: Mapping[str, Answer]
    windows: Mapping[str, Answer] | None = None  # of queries with truncated documents
    other_format: Mapping[str, Answer] | None = None  # in another number format


def ranking_of(candidates: Candidates, query: str, answer: Answer | None) -> list[str]:
    """Return the documents in the order of an answer."""
    documents = candidates.ranked.get(query, ())
    return [] if answer is None else [documents[place] for place in answer.order]


def set_result(
    collection: Collection,
    candidates: Candidates,
    scored: Sequence[Scored],
    metrics: Sequence[str],
    test: Test = "randomisation",
    seed: int = 0,
) -> SetResult:
    """Return the figures of a set."""
    before = per_query(metrics, collection.grades, candidates.ranked)
    notes = [*collection.notes, *candidates.notes]
    if len(collection.queries) < FEW_QUERIES:
        notes.append(
            f"{len(collection.queries)} queries are few, and intervals of few queries are often too narrow"
        )
    return SetResult(
        name=collection.name,
        queries=len(collection.queries),
        documents=len(collection.documents),
        first_stage=candidates.name,
        before={name: mean(values) for name, values in before.items()},
        models=[_model_result(collection, candidates, before, each, test, seed) for each in scored],
        notes=notes,
        before_per_query=before,
    )


def _model_result(
    collection: Collection,
    candidates: Candidates,
    before: Mapping[str, Mapping[str, float]],
    scored: Scored,
    test: Test,
    seed: int,
) -> ModelResult:
    rankings = {
        query: ranking_of(candidates, query, scored.answers.get(query)) for query in collection.queries
    }
    after = per_query(list(before), collection.grades, rankings)
    answers = list(scored.answers.values())
    latencies = [answer.seconds * 1e3 for answer in answers] or [0.0]
    pairs = sum(len(answer.scores) for answer in answers)
    first = next(iter(before))
    compare = partial(
        _compared, collection, candidates, after=after[first], metric=first, test=test, seed=seed
    )
    cut = [len(answer.truncated) for answer in answers if answer.truncated]
    gained, lost = _most_changed(collection, candidates, rankings, before[first], after[first])
    return ModelResult(
        model=scored.name,
        score_type=answers[0].score_type if answers else "",
        changes=changes(before, after, test, seed),
        latency_p50_ms=float(np.percentile(latencies, 50)),
        latency_p95_ms=float(np.percentile(latencies, 95)),
        pairs=pairs,
        pairs_per_s=pairs / max(busy_seconds(answers), 1e-9),
        truncation=Truncation(sum(cut), len(cut), compare(scored.windows)),
        other_format=compare(scored.other_format),
        gained=gained,
        lost=lost,
        per_query=after,
        tokens=_average([answer.tokens for answer in answers]),
        stages=_stage_figures(answers),
        other_format_tau=_tau(scored),
    )


def _tau(scored: Scored) -> float | None:
    if scored.other_format is None:
        return None
    return mean_tau((each.order, scored.other_format[query].order) for query, each in scored.answers.items())


def _average(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def _stage_figures(answers: Sequence[Answer]) -> list[StageFigures]:
    if not answers:
        return []
    each = zip(*(answer.stages for answer in answers), strict=True)
    return [
        StageFigures(costs[0].model, _average([c.texts for c in costs]), _average([c.tokens for c in costs]))
        for costs in each
    ]


def busy_seconds(answers: Sequence[Answer]) -> float:
    """Return the time during which at least one request ran: pauses and interruptions do not count."""
    busy, end = 0.0, float("-inf")
    for answer in sorted(answers, key=lambda each: each.started):
        start, stop = max(answer.started, end), answer.started + answer.seconds
        busy += max(stop - start, 0.0)
        end = max(end, stop)
    return busy


def _compared(
    collection: Collection,
    candidates: Candidates,
    answers: Mapping[str, Answer] | None,
    after: Mapping[str, float],
    metric: str,
    test: Test,
    seed: int,
) -> Change | None:
    """Compare the model's values with those of other answers for some of the queries."""
    if not answers:
        return None
    grades = {query: collection.grades[query] for query in answers}
    rankings = {query: ranking_of(candidates, query, answer) for query, answer in answers.items()}
    other = per_query([metric], grades, rankings)
    (change,) = changes({metric: {query: after[query] for query in grades}}, other, test, seed)
    return change


def _most_changed(
    collection: Collection,
    candidates: Candidates,
    rankings: Mapping[str, Sequence[str]],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> tuple[list[QueryChange], list[QueryChange]]:
    def first(ranking: Sequence[str]) -> str:
        return collection.documents[ranking[0]][:SHOWN_TEXT] if ranking else ""

    def change(query: str) -> QueryChange:
        return QueryChange(
            query=query,
            text=collection.queries[query][:SHOWN_TEXT],
            before=before[query],
            after=after[query],
            first_before=first(candidates.ranked.get(query, ())),
            first_after=first(rankings[query]),
        )

    order = sorted(collection.queries, key=lambda query: before[query] - after[query])
    gained = [query for query in order if after[query] > before[query]]
    lost = [query for query in reversed(order) if after[query] < before[query]]
    return [change(query) for query in gained[:MOST_CHANGED]], [
        change(query) for query in lost[:MOST_CHANGED]
    ]
