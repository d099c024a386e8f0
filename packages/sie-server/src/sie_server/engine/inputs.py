"""Query and documents → the sequences a kind of model wants to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.engine.tokenize import TextTokenizer
from sie_server.models.packed import Tokens


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

    def __init__(self, tokenizer: TextTokenizer, cache: ModelDocuments | None = None) -> None:
        self._tokenizer, self._cache = tokenizer, cache

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        [query_tokens], [query_cut] = self._tokenizer.singles([query], limit)
        job = document_job(documents, limit, self._tokenizer.singles, self._cache)
        job.work.insert(0, Work(query_tokens, QUERY, job))
        job.query_truncated = query_cut
        return job


Tokenize = Callable[
    [list[str], int], tuple[list[Tokens], list[bool]]
]  # texts, limit → sequences, which were cut


def document_job(documents: list[str], limit: int, tokenize: Tokenize, cache: ModelDocuments | None) -> Job:
    """The work of reading the documents that are not cached; those that are become `known` at once."""
    if cache is None:
        return build_job(("score",), *tokenize(documents, limit))
    keys = [cache.key(text, limit) for text in documents]
    found = [cache.get(key) for key in keys]
    missing = [i for i, document in enumerate(found) if document is None]
    sequences, cut = tokenize([documents[i] for i in missing], limit)
    job = build_job(("score",), sequences, cut)
    job.copies = {missing[i]: [missing[copy] for copy in copies] for i, copies in job.copies.items()}
    for work in job.work:
        work.index = missing[work.index]
        work.key = keys[work.index]
    job.results = [None] * len(documents)
    job.truncated = [document.truncated if document else False for document in found]
    for i, was_cut in zip(missing, cut, strict=True):
        job.truncated[i] = was_cut
    job.known = [(i, document.vectors) for i, document in enumerate(found) if document]
    return job
