"""Pairs: a cross-encoder reads query and document in one sequence and returns one logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from sie_server.engine.job import Chunking, Job, ScoreTexts, Work, build_job
from sie_server.engine.kinds.base import Kind, Parts, Reader
from sie_server.engine.kinds.pending import Pending
from sie_server.engine.storage.weights import CheckpointWeights
from sie_server.engine.text.pair_tokenizer import PairTokenizer
from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.building import build_classifier
from sie_server.models.heads.classifier import Classifier
from sie_server.models.layers.adapted import one_row_each
from sie_server.models.spec import ClassifierSpec, ModelSpec


class PairInput:
    """Builds jobs of query-document pairs."""

    apart = True

    def __init__(self, tokenizer: PairTokenizer) -> None:
        self._tokenizer = tokenizer

    def score_job(self, texts: ScoreTexts) -> Job:
        """See `TextInput.score_job`."""
        sequences, cut, query_cut = self._tokenizer.pairs(texts.query, texts.documents, texts.limit)
        job = build_job(("score",), sequences, cut)
        job.query_truncated = query_cut
        return job

    def chunk_job(self, texts: ScoreTexts, chunking: Chunking) -> Job:
        """See `ChunkInput.chunk_job`."""
        sequences, parts, query_cut = self._tokenizer.windows(
            texts.query, texts.documents, texts.limit, chunking
        )
        job = build_job(("score",), sequences, parts.cut)
        job.query_truncated, job.chunks = query_cut, parts.chunks
        return job


class LogitReader(Reader):
    """Reads one raw logit per sequence, for cross-encoders and causal rerankers."""

    def __init__(self, head: Classifier) -> None:
        self._head = head
        self.readout: Readout = head.readout

    def read(self, hidden: Tensor, batch: PackedBatch, works: list[Work]) -> Pending:
        """See `Reader.read`."""
        with one_row_each():
            logits = self._head.logits(hidden, batch)

        def finish(arrays: list[Any]) -> list[Any]:
            results: list[Any] = [None] * len(works)
            for place, logit in zip(batch.order, arrays[0].tolist(), strict=True):
                results[place] = logit
            return results

        return Pending([logits], finish)


def _tokenizer(directory: Path, spec: ModelSpec) -> PairTokenizer:
    if not isinstance(spec.head, ClassifierSpec):
        raise TypeError(f"expected a ClassifierSpec, got {spec.head!r}")
    return PairTokenizer(directory, spec.head.truncation, token_types=spec.backbone.token_types)


def _input(parts: Parts) -> PairInput:
    return PairInput(parts.tokenizer)


def classifier_reader(parts: Parts, weights: CheckpointWeights) -> Reader:
    """Build the reader of a classification head."""
    return LogitReader(build_classifier(parts.spec, weights))


PAIRS = Kind(input=_input, reader=classifier_reader, tokenizer=_tokenizer)
