"""`rank_files`: scores the documents of many queries, resumes after interruptions, and writes their rankings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from sie_server.config import ServerConfig
from sie_server.errors import shown
from sie_server.eval.systems import System, configured, parse_systems
from sie_server.offline.errors import OfflineError, Refused
from sie_server.offline.journal import Journal, key_of
from sie_server.offline.progress import Reporter
from sie_server.offline.run import Piece, finish, run
from sie_server.offline.scorers import Answer, LocalScorer, Scorer
from sie_server.rankings.inputs import Inputs, read_inputs
from sie_server.rankings.outputs import FORMATS, Ranking, check_ids, write

JOURNAL = ".journal"  # the suffix after the name of the output


@dataclass(frozen=True)
class Job:
    """Files to read and to write; docs/offline.md describes them."""

    queries: Path
    out: Path
    docs: Path | None = None
    candidates: Path | None = None
    depth: int | None = None
    top_n: int | None = None
    concurrency: int = 1
    reporter: Reporter = field(default_factory=Reporter)


class Summary(msgspec.Struct, frozen=True):
    """Counts of a finished job."""

    queries: int
    pairs: int
    truncated: int  # pairs
    truncated_queries: int
    notes: tuple[str, ...]


def rank_files(
    job: Job,
    model: str,
    *,
    endpoint: str | None = None,
    deadline_s: float | None = None,
    config: ServerConfig | None = None,
) -> Summary:
    """Carry out a job with a model: `ID[:ADAPTER][@PROFILE][=SOURCE]`, in this process or at an endpoint.

    The same call resumes after an interruption.

    Raises:
        OfflineError: files, model or endpoint cannot be used. DataError is the kind for files.
    """
    config = config or ServerConfig()
    check_out(job.out)
    [system] = parse_systems([model], config.models_dir)
    inputs = read_inputs(job.queries, job.docs, job.candidates, job.depth)
    check_ids(job.out, (*inputs.queries, *(name for found in inputs.ranked.values() for name in found)))
    own = msgspec.structs.replace(config, model=configured([system.configured]))

    def make() -> Scorer:
        if endpoint is None:
            return LocalScorer(own)
        from sie_server.offline.remote import RemoteScorer

        return RemoteScorer(endpoint, deadline_s)

    return run(_with_scorer(job, system, inputs, make))


def check_out(out: Path) -> None:
    """Refuse an output that cannot be written, or that exists without an unfinished job.

    Raises:
        OfflineError: the reason and the next step.
    """
    if out.is_dir():
        raise OfflineError(f"--out {out} is a directory; name a file")
    if out.suffix.lower() not in FORMATS:
        raise OfflineError(
            f"--out {shown(str(out))} must end in {', '.join(FORMATS)}, which chooses the format"
        )
    if out.exists() and not _journal_of(out).exists():
        raise OfflineError(
            f"{out} exists, and its job is finished; delete it to do it anew, or choose another --out"
        )


def _journal_of(out: Path) -> Path:
    return out.with_name(out.name + JOURNAL)


async def _with_scorer(job: Job, system: System, inputs: Inputs, make: Callable[[], Scorer]) -> Summary:
    scorer = make()
    try:
        return await rank(job, system, inputs, scorer)
    finally:
        await scorer.close()


async def rank(job: Job, system: System, inputs: Inputs, scorer: Scorer) -> Summary:
    """Score what the journal does not have yet, then write the output and delete the journal. Raises OfflineError."""
    job.reporter.note(f"loading {system.name}")
    about = await scorer.identity(system.model, system.options)
    keys = dict(_keys(inputs, system))

    async def answer(query: str) -> Answer:
        try:
            return await scorer.score(
                system.model, inputs.queries[query], inputs.texts(query), system.options
            )
        except Refused as error:
            raise OfflineError(f"query {shown(query)}: {error}") from None

    with Journal(
        _journal_of(job.out), {"kind": "ranking", **_files(job), "model": system.name, **about}
    ) as journal:
        pieces = (Piece(key, query) for query, key in keys.items())
        step = job.reporter.step(system.name)
        await finish(pieces, answer, journal, concurrency=job.concurrency, step=step)
        count = _Counter()
        write(job.out, count.over(_rankings(job, inputs, keys, journal)), system.name)
        journal.remove()
    return count.summary(inputs.notes)


def _files(job: Job) -> dict[str, str | None]:
    """Return the files of a job, so that another job does not continue its journal. Their contents may change."""
    paths = {"queries": job.queries, "docs": job.docs, "candidates": job.candidates}
    return {name: str(path.resolve()) if path else None for name, path in paths.items()}


def _keys(inputs: Inputs, system: System) -> Iterator[tuple[str, str]]:
    """Yield each query that has documents, with the digest of everything that its answer depends on."""
    options = sorted(system.options.items())
    for query, text in inputs.queries.items():
        if inputs.ranked.get(query):
            yield query, key_of(text, inputs.texts(query), options)


def _rankings(job: Job, inputs: Inputs, keys: Mapping[str, str], journal: Journal) -> Iterator[Ranking]:
    for query, key in keys.items():
        answer: Answer = msgspec.convert(journal[key], Answer)
        yield Ranking(query, list(inputs.ranked[query]), answer, job.top_n)


class _Counter:
    """Counts the rankings that pass."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = dict.fromkeys(
            ("queries", "pairs", "truncated", "truncated_queries"), 0
        )
        self._pruned = 0

    def over(self, rankings: Iterator[Ranking]) -> Iterator[Ranking]:
        for each in rankings:
            self._counts["queries"] += 1
            self._counts["pairs"] += len(each.documents)
            self._counts["truncated"] += len(each.answer.truncated)
            self._counts["truncated_queries"] += each.answer.query_truncated
            self._pruned += each.answer.pruned
            yield each

    def summary(self, notes: tuple[str, ...]) -> Summary:
        if self._pruned:
            notes = (*notes, f"{self._pruned} documents have no score: the cascade pruned them")
        return Summary(**self._counts, notes=notes)
