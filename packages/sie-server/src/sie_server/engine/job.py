"""One request's share of device work: a `Job` of `Work` items, one per sequence. The nouns of engine and serving."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sie_server.models.batch import Prefix, Tokens

if TYPE_CHECKING:
    from sie_server.engine.kinds.sparse import M3Scoring, M3Vectors
    from sie_server.engine.lora.adapter import Adapter
    from sie_server.models.heads.late_interaction import DocumentVectors, QueryVectors
    from sie_server.models.lora import Changes


class Sparse(NamedTuple):
    """The entries of a vector that are not 0, by rising index."""

    indices: npt.NDArray[np.int32]  # [entries]
    values: npt.NDArray[np.float32]  # [entries]


Vectors = dict[str, npt.NDArray[np.float32] | Sparse]  # output name → [dim], [tokens, dim] or entries
QUERY = -1  # `Work.index` of a late-interaction query: its vectors go to the job, not to a result


@dataclass(eq=False, slots=True)
class Work:
    """One sequence to put through the model; `index` is the place of its result."""

    tokens: Tokens
    index: int
    job: Job
    key: bytes | None = None  # under which a document's vectors are to be cached
    cut: bool = False  # the text of `key` has more tokens; kept with its vectors


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

    `results[i]` is the logit or late-interaction score (float) or the vectors (`Vectors`) of the i-th text; with
    `chunks` or `blocks`, what the i-th of those gave.
    """

    outputs: tuple[str, ...]  # ("score",) or what encode should give
    results: list[Any]
    truncated: list[bool]
    query_truncated: bool = False
    query_limit: int | None = None  # tokens, where it is another than the documents'
    query_vectors: QueryVectors | None = None
    known: list[tuple[int, DocumentVectors]] = field(default_factory=list)  # index, vectors: no work needed
    known_tokens: int = 0  # that were read, in an earlier request, to know them
    is_query: bool = False  # texts to encode are queries
    query_m3: M3Vectors | None = None
    m3_scoring: M3Scoring | None = None
    chunks: list[Chunk] | None = None  # results are of these windows instead of whole documents
    blocks: list[range] | None = None  # results are of these runs of documents, each read together
    work: list[Work] = field(default_factory=list)  # in the order it should be done
    copies: dict[int, list[int]] = field(default_factory=dict)  # result → results of the same sequence
    cutoff_layer: int | None = None  # after which the score is read; None: the last
    adapter: Adapter | None = None  # under which its sequences are read
    prefix: Prefix | None = None  # stands before every sequence of the job, and is not part of its tokens

    def put(self, index: int, result: Any) -> None:
        """Note a result, also for the texts that are the same sequence."""
        for i in (index, *self.copies.get(index, ())):
            self.results[i] = result

    @property
    def changes(self) -> Changes | None:
        """What its adapter changes of the model; None: nothing."""
        return self.adapter.changes if self.adapter else None

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, without padding; a shared prefix once."""
        return sum(len(w.tokens) for w in self.work) + len(self.prefix or ())

    @property
    def input_tokens(self) -> int:
        """Tokens of all sequences, as the caller is told.

        A shared prefix counts in every sequence it begins, a sequence for every text it is, a cached document as if
        it were read now. Vectors that the caller sent cost no tokens.
        """
        prefix = len(self.prefix or ())
        read = sum((len(w.tokens) + prefix) * (1 + len(self.copies.get(w.index, ()))) for w in self.work)
        return read + self.known_tokens

    def release(self) -> None:
        """Let go of what the job keeps on the device; a batch that still runs goes on with what it took.

        Works and job refer to each other, so without this a prefix would stay until the garbage collector comes by.
        """
        if self.prefix:
            self.prefix = replace(self.prefix, layers=[])


def build_job(outputs: tuple[str, ...], sequences: list[Tokens], truncated: list[bool]) -> Job:
    """A job over `sequences`, the longest first so that slices of it are of even length.

    Equal sequences are put through the model once: the last bits of a result depend on the place in the batch, and the
    same text twice must tie all the same.
    """
    job = Job(outputs, [None] * len(sequences), truncated)
    first: dict[tuple[bytes, int], int] = {}
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        same = first.setdefault((sequences[i].ids.tobytes(), sequences[i].type_boundary), i)
        if same == i:
            job.work.append(Work(sequences[i], i, job))
        else:
            job.copies.setdefault(same, []).append(i)
    return job
