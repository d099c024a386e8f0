"""Texts that are longer than the limit: refused on request, else cut and reported."""

from __future__ import annotations

from collections.abc import Sequence

from sie_server.engine.job import Job
from sie_server.errors import InvalidInput


def refuse_truncation(job: Job, limit: int) -> None:
    """For `long_document: refuse`: no text may be longer than the limit.

    Raises:
        InvalidInput: names the first text that is longer.
    """
    if job.query_truncated:
        raise InvalidInput(
            f"the query is longer than the model reads ({job.query_limit or limit} tokens), and "
            "long_document 'refuse' does not allow cutting it - at `$.query.text`"
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


def query_warning(limit: int, query_limit: int | None) -> str:
    """The warning for a query that was cut; some models have a limit of their own for queries."""
    if query_limit:
        return f"the query is longer than the {query_limit} tokens this model reads and was cut"
    return f"the query is longer than the model reads (max_seq_length {limit}) and was cut"


def text_warnings(truncated: Sequence[bool], limit: int, max_document_tokens: int | None = None) -> list[str]:
    """The warning for texts that were cut at the end, if there are any."""
    if not any(truncated):
        return []
    limits = f"max_seq_length {limit}"
    if max_document_tokens:
        limits += f" or max_document_tokens {max_document_tokens}"
    count = f"{sum(truncated)} of {len(truncated)}"
    return [f"{count} texts are longer than {limits} and were cut at the end"]


def chunk_warnings(truncated: Sequence[bool], most: int) -> list[str]:
    """The warning for documents with more chunks than are read, if there are any."""
    if not any(truncated):
        return []
    count = f"{sum(truncated)} of {len(truncated)}"
    return [f"{count} documents have more than {most} chunks (max_chunks); the rest was not read"]
