"""Texts that are longer than the limit: refused on request, else cut and reported."""

from __future__ import annotations

from collections.abc import Sequence

from sie_server.engine.engine import Engine
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


def query_warning(job: Job, query: str, limit: int, *, paired: bool) -> str:
    """Return the warning for a query that was truncated.

    Some models have a limit of their own for queries; `paired`: query and document share the limit.
    """
    own = job.query_limit or limit
    if len(query) > most_chars(own) and not (paired and _fills(job, limit)):
        return f"the query was cut: only its first {most_chars(own):,} characters are read"
    if job.query_limit:
        return f"the query was cut: it is longer than the {own} tokens that this model reads of a query"
    if not paired:
        return f"the query was cut: it is longer than max_seq_length {limit}"
    return (
        f"the query was cut in one or more pairs: with the document, it is longer than max_seq_length {limit}"
    )


def text_warnings(
    job: Job,
    truncated: Sequence[bool],
    texts: Sequence[str],
    engine: Engine,
    limit: int,
    max_document_tokens: int | None = None,
) -> list[str]:
    """Return a warning for each reason why texts were truncated.

    Most are longer than the limit of tokens. A text with few tokens per character ends where reading ends.
    """
    wanted, lengths = min(limit, max_document_tokens or limit), {} if job.blocks else _lengths(job)
    most = most_chars(wanted)
    unread = [
        cut and len(text) > most and not _is_full(lengths.get(i, wanted), wanted)
        for i, (cut, text) in enumerate(zip(truncated, texts, strict=True))
    ]
    limits = f"max_seq_length {limit}"
    if max_document_tokens:
        limits += f" or max_document_tokens {max_document_tokens}"
    longer, side = sum(truncated) - sum(unread), "start" if engine.truncation_side == "left" else "end"
    warnings = []
    if longer:
        warnings.append(f"{longer} of {len(texts)} texts are longer than {limits} and were cut at the {side}")
    if any(unread):
        warnings.append(
            f"{sum(unread)} of {len(texts)} texts have more than {most:,} characters, of which the rest was not "
            f"read for {wanted} tokens"
        )
    return warnings


def _fills(job: Job, limit: int) -> bool:
    """Return whether a sequence of the job was cut at the limit."""
    return any(_is_full(length, limit) for length in _lengths(job).values())


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


def chunk_warnings(truncated: Sequence[bool], most: int) -> list[str]:
    """The warning for documents with more chunks than are read, if there are any."""
    if not any(truncated):
        return []
    count = f"{sum(truncated)} of {len(truncated)}"
    return [
        f"{count} documents have more than {most} chunks (max_chunks), or more characters than are read for them; "
        "the rest was not read"
    ]
