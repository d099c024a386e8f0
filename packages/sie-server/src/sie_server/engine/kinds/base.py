"""The protocols of a kind, and the parts that its builders receive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.job import Chunking, Job, ScoreTexts, Work
from sie_server.engine.kinds.pending import Pending
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.packing import Places
from sie_server.models.spec import ModelSpec


class TextInput(Protocol):
    """Builds the job of a score request. `ChunkInput` and `EncodeInput` are optional additions."""

    apart: bool  # the sequences of a text do not depend on the other documents, so a job may grow (`engine.growing`)

    def score_job(self, texts: ScoreTexts) -> Job:
        """Build a job with one result per document; documents over the limit are truncated."""
        ...


@runtime_checkable
class ChunkInput(Protocol):
    """A `TextInput` that can also split long documents."""

    def chunk_job(self, texts: ScoreTexts, chunking: Chunking) -> Job:
        """Build a job with one result per window, in the order of `Job.chunks`."""
        ...


@runtime_checkable
class EncodeInput(Protocol):
    """A `TextInput` that can also build the job of an encode request."""

    def encode_job(
        self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool, prompt: str = ""
    ) -> Job:
        """Build a job with one result per text, at most `limit` tokens per sequence; `prompt` precedes every text."""
        ...


class Reader(Protocol):
    """Turns the hidden states of a forward pass into results."""

    readout: Readout

    def most(self) -> int | None:
        """Return how many sequences a pass may have; None: any number."""
        return None

    def picks(self, work: Work) -> Places | None:
        """Return the tokens of a work that `read` selects one by one (`PackedBatch.picked`); None: none."""
        return None

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """Return one result per work, in the order of `works`; None for a query.

        Nothing waits for the device: no value of a tensor is read, and no tensor is built of values of the host.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """The parts that a kind's builders receive."""

    directory: Path
    spec: ModelSpec
    head: Any  # `spec.head`, of the class that `kinds.table` lists for the kind
    tokenizer: Any  # the result of the kind's own `tokenizer`
    documents: ModelDocuments | None  # None: token vectors are not cached
    share_prefix: bool  # see `engine.text.prefix`


def plain_tokenizer(directory: Path, spec: ModelSpec) -> TextTokenizer:
    """Build the default tokenizer."""
    return TextTokenizer(directory, token_types=spec.backbone.token_types)


@dataclass(frozen=True)
class Kind:
    """The builders of one kind."""

    input: Callable[[Parts], TextInput]
    reader: Callable[[Parts, CheckpointWeights], Reader]
    tokenizer: Callable[[Path, ModelSpec], TextTokenizer] = plain_tokenizer
