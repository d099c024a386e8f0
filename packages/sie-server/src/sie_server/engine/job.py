"""One request's share of device work: a `Job` of `Work` items, one per sequence. The nouns of engine and serving."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sie_server.models.packed import Tokens

if TYPE_CHECKING:
    from sie_server.engine.sparse_readout import M3Scoring, M3Vectors
    from sie_server.models.late_interaction import QueryVectors


class Sparse(NamedTuple):
    """The entries of a vector that are not 0, by rising index."""

    indices: npt.NDArray[np.int32]  # [entries]
    values: npt.NDArray[np.float32]  # [entries]


Vectors = dict[str, npt.NDArray[np.float32] | Sparse]  # output name → [dim], [tokens, dim] or entries
QUERY = -1  # `Work.index` of a late-interaction query: its vectors go to the job, not to a result


@dataclass(eq=False, slots=True)
class Work:
    """One sequence to put through the encoder; `index` is the place of its result."""

    tokens: Tokens
    index: int
    job: Job


@dataclass(frozen=True)
class Chunk:
    """One window of a long document: which of `count`, and the characters [start, end) of the text it covers."""

    document: int
    index: int
    count: int
    start: int
    end: int


@dataclass(eq=False)
class Job:
    """What one request wants from the device, and what it got so far.

    `results[i]` is the logit or late-interaction score (float) or the vectors (`Vectors`) of the i-th text.
    """

    outputs: tuple[str, ...]  # ("score",) or what encode should give
    results: list[Any]
    truncated: list[bool]
    query_truncated: bool = False
    query_vectors: QueryVectors | None = None
    query_m3: M3Vectors | None = None
    m3_scoring: M3Scoring | None = None
    chunks: list[Chunk] | None = None  # results are of these windows instead of whole documents
    work: list[Work] = field(default_factory=list)  # in the order it should be done

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, without padding."""
        return sum(len(w.tokens) for w in self.work)


def build_job(outputs: tuple[str, ...], sequences: list[Tokens], truncated: list[bool]) -> Job:
    """A job over `sequences`, the longest first so that slices of it are of even length."""
    job = Job(outputs, [None] * len(sequences), truncated)
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    job.work = [Work(sequences[i], i, job) for i in order]
    return job
