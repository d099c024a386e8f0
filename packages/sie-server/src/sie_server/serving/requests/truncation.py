"""Texts that are longer than the limit: refused on request, else cut and noted for the warnings."""

from __future__ import annotations

from collections.abc import Sequence

from sie_server.engine.job import Job
from sie_server.engine.text.slices import most_chars
from sie_server.errors import InvalidInput


def refuse_truncation(job: Job, limit: int) -> None:
    """For `long_document: refuse`: no text may be longer than the limit.

    Raises:
        InvalidInput: names the first text that is longer.
    """
    if job.query_truncated:
        raise InvalidInput(
            f"the query, or the query with a text, is longer than the {job.query_limit or limit} tokens that the model "
            "reads, and long_document 'refuse' does not allow cutting it - at `$.query.text`"
        )
    if any(job.truncated):
        raise InvalidInput(
            f"the text, or the text with the query, is longer than the {limit} tokens that the model reads, and "
            f"long_document 'refuse' does not allow cutting it - at `$.items[{job.truncated.index(True)}]`"
        )


def mark_shortened(job: Job, shortened: list[bool]) -> None:
    """Mark documents that `max_document_tokens` has shortened as truncated, even if the model could read the rest."""
    if any(shortened):
        job.truncated = [cut or short for cut, short in zip(job.truncated, shortened, strict=True)]


def is_full(job: Job, limit: int) -> bool:
    """Return whether a sequence of the job was cut at the limit."""
    return any(_is_full(length, limit) for length in _lengths(job).values())


def unread(job: Job, truncated: Sequence[bool], texts: Sequence[str], wanted: int) -> list[bool]:
    """Return which texts have more characters than are read for the `wanted` tokens, of which they gave fewer."""
    lengths: dict[int, int] = {} if job.blocks else _lengths(job)
    most = most_chars(wanted)
    return [
        cut and len(text) > most and not _is_full(lengths.get(i, wanted), wanted)
        for i, (cut, text) in enumerate(zip(truncated, texts, strict=True))
    ]


def _is_full(length: int, limit: int) -> bool:
    """Return whether a sequence was cut at the limit; a template may shorten a document by a few tokens more."""
    return length >= limit * 3 // 4


def _lengths(job: Job) -> dict[int, int]:
    """Return the tokens of each sequence by the index of its result; a cached document has none."""
    shared = len(job.prefix or ())
    return {
        index: shared + len(work.tokens)
        for work in job.work
        for index in (work.index, *job.copies.get(work.index, ()))
    }
