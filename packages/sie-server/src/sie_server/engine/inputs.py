"""Query and documents → the sequences a kind of model wants to read."""

from __future__ import annotations

from typing import Protocol

from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.engine.tokenize import TextTokenizer


class ScoreInput(Protocol):
    """How a score request becomes work."""

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        """One result per document; at most `limit` tokens per sequence.

        `instruction` is given only to models whose spec takes one.
        """
        ...


class PairInput:
    """Cross-encoders read query and document together."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        sequences, cut, query_cut = self._tokenizer.pairs(query, documents, limit)
        job = build_job(("score",), sequences, cut)
        job.query_truncated = query_cut
        return job


class LateInteractionInput:
    """Query and documents are read apart; the query goes first, the documents are scored against its vectors."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        [query_tokens], [query_cut] = self._tokenizer.singles([query], limit)
        job = build_job(("score",), *self._tokenizer.singles(documents, limit))
        job.work.insert(0, Work(query_tokens, QUERY, job))
        job.query_truncated = query_cut
        return job
