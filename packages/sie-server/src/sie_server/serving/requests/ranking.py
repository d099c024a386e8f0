"""Results of a job → one raw value per document. Pure."""

from __future__ import annotations

import math
from itertools import groupby

from sie_server.engine.job import Chunk, Job
from sie_server.engine.kinds.listwise import listwise_scores
from sie_server.serving.finishing import DocumentScores
from sie_server.wire import ChunkSpan


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
