"""Query and documents → the sequences a kind of model wants to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.job import QUERY, Job, Work, build_job
from sie_server.engine.text.chunks import Chunking, Chunks, split
from sie_server.engine.text.tokenizer import TextTokenizer
from sie_server.models.batch import Ids, Tokens


class TextInput(Protocol):
    """How a score request becomes work; `ChunkInput` also splits documents, `EncodeInput` also gives vectors."""

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        """One result per document; at most `limit` tokens per sequence.

        `instruction` is given only to models whose spec takes one.
        """
        ...


@runtime_checkable
class EncodeInput(Protocol):
    """How texts become work whose results are vectors."""

    def encode_job(self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool) -> Job:
        """One result per text; at most `limit` tokens per sequence."""
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

    def chunk_job(
        self,
        query: str,
        documents: list[str],
        limit: int,
        chunking: Chunking,
        instruction: str | None = None,
    ) -> Job:
        head, room, query_cut = self._tokenizer.pair_head(query, limit)
        parts = split(self._tokenizer, documents, room, chunking)
        job = build_job(("score",), [self._tokenizer.pair(head, ids) for ids in parts.ids], parts.cut)
        job.query_truncated, job.chunks = query_cut, parts.chunks
        return job


class LateInteractionInput:
    """Query and documents are read apart; the query goes first, the documents are scored against its vectors."""

    def __init__(self, tokenizer: TextTokenizer, cache: ModelDocuments | None = None) -> None:
        self._tokenizer, self._cache = tokenizer, cache

    def score_job(self, query: str, documents: list[str], limit: int, instruction: str | None = None) -> Job:
        return self._with_query(
            document_job(documents, limit, self._tokenizer.singles, self._cache), query, limit
        )

    def chunk_job(
        self,
        query: str,
        documents: list[str],
        limit: int,
        chunking: Chunking,
        instruction: str | None = None,
    ) -> Job:
        parts = split(self._tokenizer, documents, self._tokenizer.single_room(limit), chunking)
        return self._with_query(window_job(parts, self._tokenizer.single, self._cache), query, limit)

    def encode_job(self, texts: list[str], outputs: tuple[str, ...], limit: int, *, is_query: bool) -> Job:
        return build_job(outputs, *self._tokenizer.singles(texts, limit))

    def _with_query(self, job: Job, query: str, limit: int) -> Job:
        [query_tokens], [job.query_truncated] = self._tokenizer.singles([query], limit)
        job.work.insert(0, Work(query_tokens, QUERY, job))
        return job


Sequences = tuple[list[Tokens], list[bool]]  # and which texts were cut


def document_job(
    documents: list[str],
    limit: int,
    tokenize: Callable[[list[str], int], Sequences],
    cache: ModelDocuments | None,
) -> Job:
    """The work of reading the documents that are not cached; those that are become `known` at once."""
    if cache is None:
        return build_job(("score",), *tokenize(documents, limit))
    keys = [cache.key(text, limit) for text in documents]
    return _cached_job(keys, lambda missing: tokenize([documents[i] for i in missing], limit), cache)


def window_job(parts: Chunks, single: Callable[[Ids], Tokens], cache: ModelDocuments | None) -> Job:
    """The work of reading the windows of documents that are not cached; `single` makes a sequence of one."""
    windows = [single(ids) for ids in parts.ids]
    if cache is None:
        job = build_job(("score",), windows, parts.cut)
    else:
        keys = [cache.window_key(window.ids) for window in windows]
        job = _cached_job(
            keys, lambda missing: ([windows[i] for i in missing], [False] * len(missing)), cache
        )
        job.truncated = parts.cut  # says something of the document, not of the window
    job.chunks = parts.chunks
    return job


def _cached_job(keys: list[bytes], read: Callable[[list[int]], Sequences], cache: ModelDocuments) -> Job:
    """`read` makes sequences of the documents in those places, which are not cached."""
    found = [cache.get(key) for key in keys]
    missing = [i for i, document in enumerate(found) if document is None]
    sequences, cut = read(missing)
    job = build_job(("score",), sequences, cut)
    job.copies = {missing[i]: [missing[copy] for copy in copies] for i, copies in job.copies.items()}
    for work in job.work:
        work.cut, work.index = cut[work.index], missing[work.index]
        work.key = keys[work.index]
    job.results = [None] * len(keys)
    job.truncated = [document.truncated if document else False for document in found]
    for i, was_cut in zip(missing, cut, strict=True):
        job.truncated[i] = was_cut
    job.known = [(i, document.vectors) for i, document in enumerate(found) if document]
    job.known_tokens = sum(document.tokens for document in found if document)
    return job
