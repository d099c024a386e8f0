"""A job that is built part by part, while the device reads the works of earlier parts.

Each part is the job of some of the request's texts. Its works become works of the whole job. A sequence that an earlier
part has already is not read again, so equal texts have equal results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sie_server.engine.job import QUERY, Chunk, Job, SequenceKey, Work, sequence_key


class GrowingJob:
    """The whole job. Its methods run on one thread at a time; results may arrive on another thread at any time."""

    def __init__(self, count: int) -> None:
        """Create a job without works for `count` texts."""
        self._count = count
        self._job: Job | None = None
        self._found: dict[SequenceKey, int] = {}  # sequence → the place of its result
        self._late: list[tuple[int, int]] = []  # results that equal those of works of earlier parts

    @property
    def job(self) -> Job:
        """The job so far; there is none before the first part."""
        assert self._job is not None
        return self._job

    def add(self, part: Job, texts: Sequence[int]) -> list[Work]:
        """Add the job of some texts, which are at the places `texts` of the request; return the new works.

        The first part brings the query of a model that reads it apart.
        """
        job, chunks = self._job or self._first(part), part.chunks
        places = texts if chunks is None else self._add_chunks(job, chunks, texts)
        for i, place in enumerate(places):
            job.truncated[place] = part.truncated[i]
        job.query_truncated = job.query_truncated or part.query_truncated
        job.known += [(places[i], vectors) for i, vectors in part.known]
        job.known_tokens += part.known_tokens
        asked = any(work.index == QUERY for work in job.work[:1])
        new = []
        for work in part.work:
            if work.index != QUERY:
                copies = [places[i] for i in part.copies.get(work.index, ())]
                new += self._added(job, work, places[work.index], copies)
            elif not asked:
                new.append(replace(work, job=job))
        job.work += new
        return new

    def _first(self, part: Job) -> Job:
        if part.prefix or part.blocks:
            raise RuntimeError("the sequences of this model depend on one another; its jobs cannot grow")
        texts = self._count if part.chunks is None else 0
        empty: Job = replace(
            part,
            results=[None] * texts,
            truncated=[False] * texts,
            chunks=None if part.chunks is None else [],
            work=[],
            copies={},
            known=[],
            known_tokens=0,
        )
        self._job = empty
        return empty

    def _add_chunks(self, job: Job, chunks: list[Chunk], texts: Sequence[int]) -> range:
        """Add places for the results of windows, in the order of the parts until `finish`."""
        first = len(job.results)
        job.results += [None] * len(chunks)
        job.truncated += [False] * len(chunks)
        assert job.chunks is not None
        job.chunks += [replace(chunk, document=texts[chunk.document]) for chunk in chunks]
        return range(first, len(job.results))

    def _added(self, job: Job, work: Work, place: int, copies: list[int]) -> list[Work]:
        """Return the work if its sequence is new; else its results are copies."""
        same = self._found.setdefault(sequence_key(work.tokens), place)
        if same == place:
            if copies:
                job.copies[place] = copies
            return [replace(work, index=place, job=job)]
        self._late += [(copy, same) for copy in (place, *copies)]
        job.copies.setdefault(same, []).extend((place, *copies))
        return []

    def whole(self) -> Job:
        """Return the job after its last part."""
        self._found.clear()
        return self.job

    def finish(self) -> None:
        """Complete the results when all works have theirs: later copies, and windows in the order of the texts."""
        job = self.job
        for copy, place in self._late:
            job.results[copy] = job.results[place]
        if job.chunks is not None:
            _sort_windows(job, job.chunks)


def _sort_windows(job: Job, chunks: list[Chunk]) -> None:
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].document)
    job.results = [job.results[i] for i in order]
    job.truncated = [job.truncated[i] for i in order]
    job.chunks = [chunks[i] for i in order]
    new = {old: place for place, old in enumerate(order)}
    for work in job.work:
        work.index = new.get(work.index, work.index)  # a query's is no place
    job.copies = {new[place]: [new[copy] for copy in copies] for place, copies in job.copies.items()}
