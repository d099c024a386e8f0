"""Results of a job → one raw value per document → ranked entries. Pure.

The sigmoid is computed in double precision, so that different logits never tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from msgspec import UNSET, UnsetType

from sie_server.engine.job import Chunk, Job
from sie_server.engine.kinds.listwise import listwise_scores
from sie_server.errors import InferenceError
from sie_server.serving.activation import activate
from sie_server.wire import ChunkSpan, Document, Item, Options, ScoreEntry


@dataclass(frozen=True)
class DocumentScores:
    """Per document: the raw value, whether it was cut, and its best chunk if the documents were split."""

    raw: Sequence[float]
    truncated: Sequence[bool]
    chunks: Sequence[ChunkSpan] | None = None


def per_document(job: Job, aggregate: str | None) -> DocumentScores:
    """Reduce chunks or listwise blocks to documents.

    Chunks: the raw value of the best chunk, or with `mean` the average of all. The span is always that of the best
    chunk. Blocks: the cosines of their vectors.
    """
    if job.blocks is not None:
        return DocumentScores(listwise_scores(job.results), job.truncated)
    if job.chunks is None:
        return DocumentScores(job.results, job.truncated)
    return _from_chunks(job, job.chunks, aggregate)


def _from_chunks(job: Job, chunks: list[Chunk], aggregate: str | None) -> DocumentScores:
    raw, truncated, spans = [], [], []
    for _, members in groupby(range(len(chunks)), key=lambda i: chunks[i].document):
        indices = list(members)
        values: list[float] = [job.results[i] for i in indices]
        best = chunks[max(indices, key=lambda i: job.results[i])]  # the first of equal ones
        raw.append(_aggregated(values, aggregate))
        truncated.append(job.truncated[indices[0]])
        spans.append(ChunkSpan(best.start, best.end, best.index, best.count))
    return DocumentScores(raw, truncated, spans)


def _aggregated(values: list[float], aggregate: str | None) -> float:
    if aggregate == "mean":
        return sum(values) / len(values)
    # max() may pass over a NaN, which `rank` has to see
    return next((value for value in values if not math.isfinite(value)), max(values))


def rank(
    items: Sequence[Item], documents: DocumentScores, activation: str, options: Options
) -> list[ScoreEntry]:
    """Return entries in order of relevance, ties in input order.

    Raises:
        InferenceError: a score is not a finite number; names the item.
    """
    raw, truncated, chunks = documents.raw, documents.truncated, documents.chunks
    for i, value in enumerate(raw):
        if not math.isfinite(value):
            raise InferenceError(f"the model returned the score {value} for $.items[{i}]; check its weights")
    # Sorted by the raw value, because a sigmoid rounds large logits to the same number.
    order = sorted(range(len(raw)), key=lambda i: -raw[i])[: options.top_n]
    return [
        ScoreEntry(
            item_id=item_id(items, i),
            score=activate(raw[i], activation),
            rank=place,
            truncated=True if truncated[i] else UNSET,
            logit=raw[i] if options.return_logits else UNSET,
            chunk=chunks[i] if chunks else UNSET,
            document=_document(items[i]) if options.return_documents else UNSET,
        )
        for place, i in enumerate(order)
    ]


def item_id(items: Sequence[Item], index: int) -> str:
    """The caller's id of an item, else `item-INDEX`."""
    given = items[index].id
    return f"item-{index}" if given is None else given


def _document(item: Item) -> Document | UnsetType:
    """Return the text of an item; an item without text (token vectors, for example) has none to return."""
    return UNSET if item.text is None else Document(item.text)
