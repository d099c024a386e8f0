"""`evaluate`: reads judged queries, takes candidates of the first stage, reranks them with models, and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from sie_server.config import DEFAULT_MODEL, ServerConfig
from sie_server.eval import first_stage
from sie_server.eval.cosine import CosineScorer
from sie_server.eval.data.collection import Collection
from sie_server.eval.data.load import load
from sie_server.eval.first_stage import Candidates
from sie_server.eval.metrics import DEFAULT
from sie_server.eval.report.report import Report
from sie_server.eval.results import Scored, set_result
from sie_server.eval.statistics import Test
from sie_server.eval.systems import System, configured, parse_systems
from sie_server.offline.errors import OfflineError, Refused, needed
from sie_server.offline.journal import Journal, key_of
from sie_server.offline.progress import Reporter
from sie_server.offline.run import Piece, finish, run
from sie_server.offline.scorers import Answer, LocalScorer, Options, Scorer

WINDOWS = {"long_document": "chunk"}


@dataclass(frozen=True)
class Plan:
    """An evaluation. docs/evaluate.md describes the fields, which are those of the command."""

    collections: Sequence[Collection]
    systems: Sequence[System]
    first_stage: str = first_stage.BM25
    depth: int = 100
    metrics: Sequence[str] = DEFAULT
    test: Test = "randomisation"
    seed: int = 0
    windows: bool = False
    compare_dtype: str | None = None
    concurrency: int = 1
    out: Path | None = None  # journals; None: nothing is kept
    reporter: Reporter = field(default_factory=Reporter)


def evaluate(
    data: str | Path | Collection | Sequence[str | Path | Collection],
    models: Sequence[str] = (DEFAULT_MODEL,),
    *,
    queries: int | None = None,
    qrels: str | None = None,
    endpoint: str | None = None,
    deadline_s: float | None = None,
    config: ServerConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **settings: Any,
) -> Report:
    """Measure how models rerank the candidates of judged queries.

    `data` has folders or files, or collections. `models` are values as of the command. `settings` are the other fields
    of `Plan`. With `out`, finished queries are kept there, and the same call resumes after an interruption.

    Raises:
        OfflineError: data, models or endpoint cannot be used. DataError is the kind for data.
    """
    config = config or ServerConfig()
    needed("ir_measures")
    plan = Plan(
        collections=[each.sample(queries, seed) for each in loaded(data, qrels)],
        systems=parse_systems(models, config.models_dir),
        seed=seed,
        out=Path(out) if out is not None else None,
        **settings,
    )
    make = _maker(plan, config, endpoint, deadline_s)
    return run(with_scorers(plan, make, _other_maker(plan, config, endpoint, plan.compare_dtype)))


def loaded(
    data: str | Path | Collection | Sequence[str | Path | Collection], qrels: str | None
) -> list[Collection]:
    """Read the sets of `evaluate`. Raises OfflineError."""
    given = [data] if isinstance(data, str | Path | Collection) else list(data)
    collections = [each if isinstance(each, Collection) else load(each, qrels) for each in given]
    names = [each.name for each in collections]
    for name in names:
        if names.count(name) > 1:
            raise OfflineError(f"two sets have the name {name!r}; rename one of them")
    return collections


def _maker(
    plan: Plan, config: ServerConfig, endpoint: str | None, deadline_s: float | None
) -> Callable[[], Scorer]:
    """Return what makes the scorer on the event loop."""
    if endpoint is not None:
        from sie_server.offline.remote import RemoteScorer

        return lambda: RemoteScorer(endpoint, deadline_s)
    named = [system.configured for system in plan.systems]
    if plan.first_stage.startswith(first_stage.ENCODE):
        named.append(plan.first_stage.removeprefix(first_stage.ENCODE))
    own = msgspec.structs.replace(config, model=configured(named))
    return lambda: LocalScorer(own)


def _other_maker(
    plan: Plan, config: ServerConfig, endpoint: str | None, dtype: str | None
) -> Callable[[], Scorer] | None:
    """Return what makes the scorer with the other number format, if one is compared."""
    if dtype is None:
        return None
    if endpoint is not None:
        raise OfflineError("--compare-dtype runs the models in this process; omit --endpoint")
    if dtype == config.dtype:
        raise OfflineError(f"--compare-dtype {dtype} is that of --dtype; choose another one")
    return _maker(plan, msgspec.structs.replace(config, dtype=dtype), None, None)


Found = dict[str, Candidates]
Answers = dict[str, list[Scored]]


async def with_scorers(
    plan: Plan, make: Callable[[], Scorer], make_other: Callable[[], Scorer] | None
) -> Report:
    """Carry out a plan; the second scorer is made when the first has freed its memory."""
    scorer = make()
    try:
        found, scored = await _score(plan, scorer)
    finally:
        await scorer.close()
    if make_other is None:
        return _report(plan, found, scored)
    other = make_other()
    try:
        return _report(plan, found, await _with_other_format(plan, found, scored, other))
    finally:
        await other.close()


async def measure(plan: Plan, scorer: Scorer) -> Report:
    """Carry out a plan. Raises OfflineError."""
    return _report(plan, *await _score(plan, scorer))


async def _score(plan: Plan, scorer: Scorer) -> tuple[Found, Answers]:
    found = {each.name: await candidates_of(plan, each, scorer) for each in plan.collections}
    return found, await _score_all(plan, found, scorer)


async def _score_all(plan: Plan, found: Found, scorer: Scorer) -> Answers:
    scored: Answers = {each.name: [] for each in plan.collections}
    for system in plan.systems:  # one model after the other, so that only one needs memory
        plan.reporter.note(f"loading {system.name}")
        own = CosineScorer(scorer) if system.dense else scorer
        about = await own.identity(system.model, system.options)
        for each in plan.collections:
            scored[each.name].append(await scored_by(plan, system, each, found[each.name], own, about))
    return scored


async def _with_other_format(plan: Plan, found: Found, scored: Answers, other: Scorer) -> Answers:
    """Return the answers together with those in the other number format, which have journals of their own."""
    systems = [replace(each, name=f"{each.name}+{plan.compare_dtype}") for each in plan.systems]
    second = await _score_all(replace(plan, systems=systems, windows=False), found, other)
    return {
        name: [replace(one, other_format=two.answers) for one, two in zip(each, second[name], strict=True)]
        for name, each in scored.items()
    }


def _report(plan: Plan, found: Found, scored: Answers) -> Report:
    results = [
        set_result(each, found[each.name], scored[each.name], plan.metrics, plan.test, plan.seed)
        for each in plan.collections
    ]
    return Report(
        first_stage=plan.first_stage,
        depth=plan.depth,
        metrics=list(plan.metrics),
        test=plan.test,
        seed=plan.seed,
        concurrency=plan.concurrency,
        compare_dtype=plan.compare_dtype,
        sets=results,
        runs={name: (found[name], scored[name]) for name in found},
    )


def _journal(plan: Plan, kind: str, *names: str, **about: Any) -> Journal:
    name = "--".join(quote(name, safe="@:+") for name in names)
    path = plan.out / kind / f"{name}.jsonl" if plan.out else None
    return Journal(path, {"kind": kind, **about})


async def candidates_of(plan: Plan, collection: Collection, scorer: Scorer) -> Candidates:
    """Return the candidates of the first stage. Raises OfflineError."""
    chosen = plan.first_stage
    if chosen == first_stage.BM25:
        plan.reporter.note(f"{collection.name}: BM25 over {len(collection.documents)} documents")
        return first_stage.bm25(collection, plan.depth)
    if chosen == first_stage.JUDGED:
        return first_stage.judged(collection, plan.depth)
    if chosen.startswith(first_stage.ENCODE):
        model = chosen.removeprefix(first_stage.ENCODE).partition("=")[0]
        steps = (
            plan.reporter.step(f"{collection.name}: documents, {model}"),
            plan.reporter.step(f"{collection.name}: queries, {model}"),
        )
        about = await scorer.vector_identity(model)
        with _journal(plan, "vectors", collection.name, model, model=model, **about) as journal:
            return await first_stage.encoded(collection, scorer, model, plan.depth, journal, steps)
    return first_stage.from_run(Path(chosen), collection, plan.depth)


async def scored_by(
    plan: Plan,
    system: System,
    collection: Collection,
    candidates: Candidates,
    scorer: Scorer,
    about: Mapping[str, Any],
) -> Scored:
    """Return the answers of a model for a set; those of an earlier run come from its journal. Raises OfflineError."""
    with _journal(plan, "scores", collection.name, system.name, model=system.name, **about) as journal:
        label = f"{collection.name}: {system.name}"
        queries = [query for query in collection.queries if candidates.ranked.get(query)]
        ask = Asking(plan, system, collection, candidates, scorer, journal)
        answers = await ask.all(queries, system.options, label)
        long = [query for query, answer in answers.items() if answer.truncated]
        windows = None
        if plan.windows and long:
            try:
                windows = await ask.all(long, {**system.options, **WINDOWS}, f"{label}, in windows")
            except Refused as error:
                plan.reporter.note(f"{label} is not scored in windows: {error}")
    return Scored(system.name, answers, windows)


@dataclass(frozen=True)
class Asking:
    """The requests to one model for one set."""

    plan: Plan
    system: System
    collection: Collection
    candidates: Candidates
    scorer: Scorer
    journal: Journal

    async def all(self, queries: Sequence[str], options: Options, label: str) -> Mapping[str, Answer]:
        """Return the answers by query. Those in the journal are not requested again."""

        async def answer(query: str) -> Answer:
            text = self.collection.queries[query]
            return await self.scorer.score(self.system.model, text, self._texts(query), options)

        pieces = {query: Piece(self._key(query, options), query) for query in queries}
        step = self.plan.reporter.step(label)
        await finish(pieces.values(), answer, self.journal, concurrency=self.plan.concurrency, step=step)
        return {query: msgspec.convert(self.journal[piece.key], Answer) for query, piece in pieces.items()}

    def _texts(self, query: str) -> list[str]:
        return [self.collection.documents[document] for document in self.candidates.ranked[query]]

    def _key(self, query: str, options: Options) -> str:
        return key_of(self.collection.queries[query], self._texts(query), sorted(options.items()))
