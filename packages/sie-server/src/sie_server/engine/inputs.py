"""Query and documents → the sequences a kind of model wants to read."""

from __future__ import annotations

from typing import Protocol

from sie_server.engine.chunks import Chunking, split
from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.engine.tokenize import TextTokenizer


class ScoreInput(Protocol):
    """How a score request becomes work."""

    def score_job(self, query: str, documents: list[str], limit: int) -> Job:
        """One result per document; at most `limit` tokens per sequence."""
        ...


class PairInput:
    """Cross-encoders read query and document together."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def score_job(self, query: str, documents: list[str], limit: int) -> Job:
        sequences, cut, query_cut = self._tokenizer.pairs(query, documents, limit)
        job = build_job(("score",), sequences, cut)
        job.query_truncated = query_cut
        return job

    def chunk_job(self, query: str, documents: list[str], limit: int, chunking: Chunking) -> Job:
        head, room, query_cut = self._tokenizer.pair_head(query, limit)
        parts = split(self._tokenizer, documents, room, chunking)
        job = build_job(("score",), [self._tokenizer.pair(head, ids) for ids in parts.ids], parts.cut)
        job.query_truncated, job.chunks = query_cut, parts.chunks
        return job


class LateInteractionInput:
    """Query and documents are read apart; the query goes first, the documents are scored against its vectors."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def score_job(self, query: str, documents: list[str], limit: int) -> Job:
        return self._with_query(
            build_job(("score",), *self._tokenizer.singles(documents, limit)), query, limit
        )

    def chunk_job(self, query: str, documents: list[str], limit: int, chunking: Chunking) -> Job:
        parts = split(self._tokenizer, documents, self._tokenizer.single_room(limit), chunking)
        job = build_job(("score",), [self._tokenizer.single(ids) for ids in parts.ids], parts.cut)
        job.chunks = parts.chunks
        return self._with_query(job, query, limit)

    def _with_query(self, job: Job, query: str, limit: int) -> Job:
        [query_tokens], [job.query_truncated] = self._tokenizer.singles([query], limit)
        job.work.insert(0, Work(query_tokens, QUERY, job))
        return job
