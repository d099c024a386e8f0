"""The data of one score or encode request: its texts, the `Job` they become, and the job's `Work`.

Engine and serving share these types.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sie_server.models.batch import Prefix, Tokens
from sie_server.models.heads.late_interaction import DocumentVectors, QueryVectors
from sie_server.models.heads.sparse import ScoreMode
from sie_server.models.lora import Changes

Floats = npt.NDArray[np.float32]


class Sparse(NamedTuple):
    """The non-zero entries of a vector, in ascending order of their indices."""

    indices: npt.NDArray[np.int32]  # [entries]
    values: Floats  # [entries]


Vectors = dict[str, Floats | Sparse]  # output name → [dim], [tokens, dim] or entries
QUERY = -1  # `Work.index` of a late-interaction query: its vectors are stored in the job, not in its results


@dataclass(frozen=True)
class Chunking:
    """How to split long documents into overlapping windows."""

    overlap: int | None  # tokens that neighbouring windows share; None: the default
    most: int  # windows per document


@dataclass(frozen=True)
class ScoreTexts:
    """The texts of a score request and how to read them."""

    query: str
    documents: list[str]
    limit: int  # tokens per sequence
    instruction: str | None = None  # only for a model whose `spec.takes_instruction` is true
    chunking: Chunking | None = None  # None: a document over the limit is truncated


@dataclass(frozen=True)
class M3Scoring:
    """Which of bge-m3's similarities make the score."""

    mode: ScoreMode = "weighted"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of dense, sparse and multivector, for `weighted`

    def combine(self, dense: float, sparse: float, multivector: float) -> float:
        """Return the score as FlagEmbedding's `compute_score` does: weighted sum over the sum of the weights."""
        parts = (dense, sparse, multivector)
        if self.mode != "weighted":
            return parts[("dense", "sparse", "multivector").index(self.mode)]
        return sum(w * p for w, p in zip(self.weights, parts, strict=True)) / sum(self.weights)


@dataclass
class M3Query:
    """The three representations of a query by bge-m3."""

    dense: Tensor  # [hidden] fp32
    tokens: Tensor  # [tokens - 1, hidden] fp32, all but [CLS]
    lexical: dict[int, float] | None = (
        None  # token id → weight above 0; None until the query's pass has ended
    )


@dataclass(eq=False, slots=True)
class Work:
    """One sequence of a job."""

    tokens: Tokens
    index: int  # of its result in `Job.results`
    job: Job
    key: bytes | None = None  # the document cache key for its vectors
    cut: bool = False  # the document of `key` was truncated; cached with its vectors

    @property
    def leads(self) -> bool:
        """Whether later works of the job need what this one computes: a query's vectors, or a prefix's states."""
        prefix = self.job.prefix
        return self.index == QUERY or bool(prefix and not prefix.layers)


@dataclass(frozen=True)
class Chunk:
    """A window of a long document."""

    document: int
    index: int
    count: int  # windows of the document
    start: int  # the window covers characters [start, end) of the text
    end: int


@dataclass(eq=False)
class Job:
    """The device work of one request and its results.

    `results[i]` is the logit or late-interaction score (float), the vectors (`Vectors`) or the `TokenMatches` of the
    i-th text. With `chunks` or `blocks` it is the result of the i-th chunk or block.
    """

    outputs: tuple[str, ...]  # ("score",), ("token_scores",), or the requested outputs of an encode request
    results: list[Any]
    truncated: list[bool]
    query_truncated: bool = False
    query_limit: int | None = None  # tokens; None: the documents' limit
    query_vectors: QueryVectors | None = None
    known: list[tuple[int, DocumentVectors]] = field(default_factory=list)  # index and vectors; need no work
    known_tokens: int = 0  # tokens read by earlier requests for the vectors in `known`
    is_query: bool = False  # the texts to encode are queries
    query_m3: M3Query | None = None
    m3_scoring: M3Scoring | None = None
    chunks: list[Chunk] | None = None  # results are per window of a document
    blocks: list[range] | None = None  # results are per block: documents [start, stop) read in one sequence
    work: list[Work] = field(default_factory=list)  # in execution order
    copies: dict[int, list[int]] = field(default_factory=dict)  # result → results of equal sequences
    cutoff_layer: int | None = None  # the layer whose output is scored; None: the last
    changes: Changes | None = None  # of the request's adapter; the reference keeps its tensors alive
    prefix: Prefix | None = None  # precedes every sequence of the job and is not part of its tokens

    def put(self, index: int, result: Any) -> None:
        """Store a result for a text and for all texts with an equal sequence."""
        for i in (index, *self.copies.get(index, ())):
            self.results[i] = result

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model, without padding; a shared prefix counts once."""
        return sum(len(w.tokens) for w in self.work) + len(self.prefix or ())

    @property
    def input_tokens(self) -> int:
        """Tokens of all sequences, as reported to the caller.

        A shared prefix counts in every sequence, a sequence counts once per text that it stands for, and a cached
        document counts like one that is read now. Vectors from the caller cost no tokens.
        """
        prefix = len(self.prefix or ())
        read = sum((len(w.tokens) + prefix) * (1 + len(self.copies.get(w.index, ()))) for w in self.work)
        return read + self.known_tokens

    def release(self) -> None:
        """Drop the prefix states on the device. A running batch holds its own reference.

        Work and job refer to each other, so the states would otherwise stay until the garbage collector runs.
        """
        if self.prefix:
            self.prefix = replace(self.prefix, layers=[])


SequenceKey = tuple[bytes, int]


def sequence_key(sequence: Tokens) -> SequenceKey:
    """Return what is equal for sequences that have the same result."""
    return sequence.ids.tobytes(), sequence.type_boundary


def build_job(outputs: tuple[str, ...], sequences: list[Tokens], truncated: list[bool]) -> Job:
    """Build a job over `sequences`, longest first, so that each slice has sequences of similar length.

    Equal sequences share one work: the last bits of a result depend on its place in the batch, and equal texts must
    tie.
    """
    job = Job(outputs, [None] * len(sequences), truncated)
    first: dict[SequenceKey, int] = {}
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        same = first.setdefault(sequence_key(sequences[i]), i)
        if same == i:
            job.work.append(Work(sequences[i], i, job))
        else:
            job.copies.setdefault(same, []).append(i)
    return job
