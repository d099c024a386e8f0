"""Jobs that score documents from their vectors and use the document cache."""

from __future__ import annotations

from collections.abc import Callable

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.job import Job, build_job
from sie_server.engine.text.chunks import Chunks
from sie_server.engine.text.slices import clip
from sie_server.models.batch import Ids, Tokens

Sequences = tuple[list[Tokens], list[bool]]  # and which texts were truncated


def document_job(
    documents: list[str],
    limit: int,
    tokenize: Callable[[list[str], int], Sequences],
    cache: ModelDocuments | None,
) -> Job:
    """Build a job that reads the documents that are not cached; cached ones become `Job.known`."""
    if cache is None:
        return build_job(("score",), *tokenize(documents, limit))
    documents, _ = clip(documents, limit)  # a key is computed of every character
    keys = [cache.key(text, limit) for text in documents]
    return _cached_job(keys, lambda missing: tokenize([documents[i] for i in missing], limit), cache)


def window_job(parts: Chunks, single: Callable[[Ids], Tokens], cache: ModelDocuments | None) -> Job:
    """Build a job that reads the windows that are not cached; `single` makes a sequence of a window's ids."""
    windows = [single(ids) for ids in parts.ids]
    if cache is None:
        job = build_job(("score",), windows, parts.cut)
    else:
        keys = [cache.window_key(window.ids) for window in windows]
        job = _cached_job(
            keys, lambda missing: ([windows[i] for i in missing], [False] * len(missing)), cache
        )
        job.truncated = parts.cut  # a property of the document, not of the window
    job.chunks = parts.chunks
    return job


def _cached_job(keys: list[bytes], read: Callable[[list[int]], Sequences], cache: ModelDocuments) -> Job:
    """Build a job over the keys that are not cached; `read` makes the sequences of those places."""
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
