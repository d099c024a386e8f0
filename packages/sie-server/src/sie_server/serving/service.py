"""The life of a request between decoding and encoding: lease, tokenise, queue, forward, read out, rank.

`score_each` and `_scored` show the steps. `DeviceWorker.run` waits for steps ④ to ⑦ (queue, pack, forward, head), which
happen on the device thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from sie_server.catalog import (
    CascadeEntry,
)
from sie_server.config import ServerConfig
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.errors import InferenceError, InvalidInput, shown
from sie_server.models.spec import ListwiseSpec
from sie_server.panics import NativePanic, catching_panics
from sie_server.serving.admission.admission import Admitted, Arrival
from sie_server.serving.admission.deadline import in_time
from sie_server.serving.backend import OnDeath, TokenWork
from sie_server.serving.cascades import CascadeRun, options_of
from sie_server.serving.device.queue import Demand
from sie_server.serving.device.tickets import PendingTicket, TicketClosed
from sie_server.serving.finishing import Part, finish_each, order_of, scores_of
from sie_server.serving.growing import Feed, divided
from sie_server.serving.lifecycle.registry import Leased
from sie_server.serving.lifecycle.slots import Slot
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.operators.differences import Scored
from sie_server.serving.operators.replay_buffer import Recorded
from sie_server.serving.requests.candidates import candidates_of, texts_of, texts_only
from sie_server.serving.requests.encoding import EncodePlan
from sie_server.serving.requests.inspection import (
    check_token_scores,
    inspect,
    inspect_tokens,
    with_token_scores,
)
from sie_server.serving.requests.options import ParsedOptions, Route, parse_options
from sie_server.serving.requests.scoring import ScorePlan
from sie_server.serving.state import ServiceState
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import (
    EncodeParams,
    EncodeRequest,
    EncodeResponse,
    InspectResponse,
    Options,
    ScoreRequest,
    ScoreResponse,
)

Result = TypeVar("Result")


class Service(ServiceState):
    """The server without HTTP. Create and use it on one event loop."""

    def __init__(self, config: ServerConfig, on_death: OnDeath | None = None) -> None:
        """`on_death` is called once if the device thread fails; after that no request can be served.

        Raises:
            ConfigError: the device is not available.
        """
        super().__init__(config, on_death, self._score_on)

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """Rank the candidates by relevance to the query.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        return await self.score_each(model, [request], timing)

    async def score_each(
        self, model: str, requests: Sequence[ScoreRequest], timing: RequestTiming, *, pairs: bool = False
    ) -> ScoreResponse:
        """Score the candidates of several queries as one request, with the options of the first.

        The response has the entries of all queries, each query's in order of relevance. With `pairs`, no text affects
        the score of another one, also if the model reads the texts of a request together.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        if cascade := self.registry.cascade(self.registry.resolve(model)[0]):
            if pairs or len(requests) > 1:
                raise InvalidInput(
                    f"model {shown(model)} is a cascade, which ranks the documents of one query; send one query per "
                    "request, or name one of its stages - at `$.model`"
                )
            return await self._score_stages(model, cascade, requests[0], timing)
        parts, requests = await self._scored(model, requests, timing, pairs=pairs)
        started = perf_counter()
        answer = finish_each(parts, requests)
        timing.step("rank", started)
        return answer

    async def score_part(self, model: str, request: ScoreRequest, timing: RequestTiming) -> Part | None:
        """Score some documents of a request, of which a cluster gives the others to other replicas.

        Returns None if the model reads the texts of a request together, or is a cascade.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        name, _ = self.registry.resolve(model)
        if self.registry.cascade(name):
            return None
        async with self._lease(name, None, RequestTiming()) as (engine, _):
            if isinstance(engine.spec.head, ListwiseSpec):
                return None
        [part], _ = await self._scored(model, [request], timing, pairs=False)
        return part

    async def _scored(
        self, model: str, requests: Sequence[ScoreRequest], timing: RequestTiming, *, pairs: bool
    ) -> tuple[list[Part], Sequence[ScoreRequest]]:
        """Return the results of each request, and the requests: with `pairs` there may be one per text."""
        first = requests[0]
        name, options = self._options("score", model, first.options, first.instruction, "$")
        timing.items = sum(len(request.items) for request in requests)
        return await self._read(model, name, options, requests, timing, pairs=pairs)

    async def _read(
        self,
        model: str,
        name: str,
        options: ParsedOptions,
        requests: Sequence[ScoreRequest],
        timing: RequestTiming,
        *,
        pairs: bool = False,
    ) -> tuple[list[Part], Sequence[ScoreRequest]]:
        """Let the model with the id `name` read requests, whose options have been checked."""
        each = [candidates_of(request) for request in requests]
        texts = [text for candidates in each for text in candidates.texts or ()]
        async with in_time(options.known, timing), self._lease(name, options.adapter, timing) as leased:
            if pairs and isinstance(leased.engine.spec.head, ListwiseSpec):
                each = [one for candidates in each for one in candidates.alone()]
            build = partial(
                ScorePlan.build, model, leased.engine, parsed=options, max_chunks=self.config.max_chunks
            )
            plans = [build(candidates) for candidates in each]
            characters = sum(plan.characters for plan in plans)
            with self._admit(leased.engine, characters, options.known, timing) as admitted:
                jobs = await self._results(name, leased, plans, texts, timing, admitted)
        parts = [plan.part(job) for plan, job in zip(plans, jobs, strict=True)]
        self.replays.buffer.add(name, options, each)
        return parts, [candidates.request for candidates in each]

    async def _score_on(self, model: str, engine: Engine, recorded: Recorded) -> Scored:
        """Let one version of a model score a request that was answered before. Requests of callers go first."""
        options = recorded.options.for_replay()
        plan = ScorePlan.build(model, engine, recorded.candidates, options, self.config.max_chunks)
        timing = RequestTiming()
        job = await self._tokenize(lambda: plan.job(None), recorded.candidates.texts or (), timing)
        if job.work:
            await self.worker.run(engine, [job], timing, "bulk")
        if job.known:
            await self.worker.score_known(engine, job, timing)
        part = plan.part(job)
        order_of(part.documents.raw)  # refuses what is not finite
        return Scored(part.documents.raw, scores_of(part), timing.inference_ms)

    async def _score_stages(
        self, model: str, cascade: CascadeEntry, request: ScoreRequest, timing: RequestTiming
    ) -> ScoreResponse:
        """Score a request with one stage after the other. Each stage has one version from its start to its end."""
        parsed = self._cascade_options("score", model, cascade, request)
        timing.items, versions = len(request.items), [repr(cascade.stages)]

        async def read(name: str, options: ParsedOptions, left: ScoreRequest) -> Part:
            [part], _ = await self._read(name, name, options, [left], timing)
            self.metrics.stage_documents.labels(self.registry.resolve(model)[0], name).inc(len(left.items))
            versions.append(timing.version)
            return part

        async with in_time(parsed.known, timing):
            run = CascadeRun(cascade, parsed, request, partial(self._stage_options, "score"), read)
            answer = await run.response(model)
        timing.version = hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
        return answer

    def _cascade_options(
        self, route: Route, model: str, cascade: CascadeEntry, request: ScoreRequest
    ) -> ParsedOptions:
        _, adapter = self.registry.resolve(model)
        return parse_options(
            request.options,
            "$",
            route,
            cascade.profiles,
            instruction=request.instruction,
            adapter_in_id=adapter,
        )

    def _stage_options(self, route: Route, model: str, raw: dict[str, Any]) -> tuple[str, ParsedOptions]:
        return self._options(route, model, raw, None, "$")

    def _inspected(self, model: str, request: ScoreRequest) -> tuple[str, ParsedOptions]:
        """Return the id of the model that a request inspects, and its options: of a cascade, the last stage."""
        cascade = self.registry.cascade(self.registry.resolve(model)[0])
        if cascade is None:
            return self._options("inspect", model, request.options, request.instruction, "$")
        parsed = self._cascade_options("inspect", model, cascade, request)
        parse = partial(self._stage_options, "inspect")
        name, options = options_of(cascade, len(cascade.stages) - 1, parsed, parse)
        return name, replace(options, warnings=parsed.warnings)

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> InspectResponse:
        """Show the sequences that `score` would read for this request.

        The model runs only for `options.token_scores`.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        name, options = self._inspected(model, request)
        candidates, options = texts_only(request), options.for_reading()
        timing.items = len(request.items)
        async with in_time(options.known, timing), self._lease(name, options.adapter, timing) as leased:
            plan = ScorePlan.build(model, leased.engine, candidates, options, self.config.max_chunks)
            if options.known.token_scores:
                return await self._inspect_tokens(name, plan, leased, timing)
            shown, _ = await self._tokenize(lambda: inspect(plan), candidates.texts or (), timing)
            return shown

    async def _inspect_tokens(
        self, name: str, plan: ScorePlan, leased: Leased, timing: RequestTiming
    ) -> InspectResponse:
        engine, texts = leased.engine, plan.candidates.texts or ()
        check_token_scores(engine)
        with self._admit(engine, plan.characters, plan.options, timing) as admitted:
            shown, job = await self._tokenize(lambda: inspect_tokens(plan, leased.adapter), texts, timing)
            timing.count_tokens(job.input_tokens)
            await self._run(name, engine, [job], timing, admitted)
        return with_token_scores(shown, job)

    async def encode(
        self,
        model: str,
        request: EncodeRequest,
        timing: RequestTiming,
        vendor: VendorOptions | None = None,
    ) -> EncodeResponse:
        """Turn texts into vectors. With `vendor` the prompt is chosen there.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        params = request.params or EncodeParams()
        name, options = self._options("encode", model, params.options, params.instruction, "$.params")
        texts, timing.items = texts_of(request.items), len(request.items)
        async with in_time(options.known, timing), self._lease(name, options.adapter, timing) as leased:
            plan = EncodePlan.build(model, leased.engine, request.items, texts, params, options, vendor)
            with self._admit(leased.engine, plan.characters, options.known, timing) as admitted:
                [job] = await self._results(name, leased, [plan], texts, timing, admitted)
        started = perf_counter()
        answer = plan.response(job, timing)
        timing.step("assemble", started)
        return answer

    async def with_tokenizer(
        self, model: str, work: TokenWork, texts: Sequence[str], timing: RequestTiming
    ) -> Any:
        """Return `work(engine)`, which reads or writes tokens of `texts`, from a tokeniser thread.

        Raises:
            SIEError: any kind except those of HTTP.
        """
        name, adapter = self.registry.resolve(model)
        async with self._lease(name, adapter, timing) as leased:
            return await self._tokenize(lambda: work(leased.engine), texts, timing)

    @asynccontextmanager
    async def _lease(self, model: str, adapter: str | None, timing: RequestTiming) -> AsyncIterator[Leased]:
        started = perf_counter()
        async with self.registry.lease(model, adapter) as leased:
            timing.step("lease", started)
            timing.version = self.registry.stamp(model, leased, adapter)
            yield leased

    def _options(
        self, route: Route, model: str, raw: dict[str, Any] | None, instruction: str | None, path: str
    ) -> tuple[str, ParsedOptions]:
        """Return the model id without an adapter in it, and the checked options."""
        name, adapter = self.registry.resolve(model)
        profiles = self.registry.profiles(name)
        parsed = parse_options(raw, path, route, profiles, instruction=instruction, adapter_in_id=adapter)
        return name, replace(parsed, calibration=self.registry.calibration(name))

    def check_early(self, model: str | None, timing: RequestTiming) -> None:
        """Refuse a request before its body is read, if the device has too much to do for any request.

        Raises:
            QueueFull
        """
        slot = self.registry.table.find(self.registry.resolve(model)[0]) if model else self._any_serving()
        if slot and slot.config.stages:
            slot = self.registry.table.find(slot.config.stages[0].model)
        if slot and slot.serving and slot.serving.engine:
            self.admission.check_early(slot.serving.engine, timing.deadline)

    def _any_serving(self) -> Slot | None:
        """Return a model that is loaded: every estimate of the queue is that of all models."""
        return next((slot for slot in self.registry.table.by_id.values() if slot.serving), None)

    @contextmanager
    def _admit(
        self, engine: Engine, characters: int, options: Options, timing: RequestTiming
    ) -> Iterator[Admitted]:
        """Check that the device can answer in time.

        Raises:
            QueueFull
        """
        tokens = self.admission.ratios.tokens(engine, characters)
        arrival = Arrival(Demand(engine, tokens, options.priority), timing.started, timing.deadline)
        with self.admission.admit(arrival, characters) as admitted:
            yield admitted

    async def _tokenize(
        self,
        work: Callable[[], Result],
        texts: Sequence[str],
        timing: RequestTiming,
        owner: object | None = None,
    ) -> Result:
        """Run `work` on a tokeniser thread; see `TokenizerPool.run`."""
        start = perf_counter()
        try:
            result = await self._tokenizers.run(catching_panics(work), texts, owner)
        except NativePanic as error:
            raise InferenceError(f"the tokenizer failed for a text of this request: {error}") from None
        timing.tokenization_ms += (perf_counter() - start) * 1e3
        timing.step("tokenize", start)
        return result

    async def _results(
        self,
        name: str,
        leased: Leased,
        plans: Sequence[ScorePlan | EncodePlan],
        texts: Sequence[str],
        timing: RequestTiming,
        admitted: Admitted,
    ) -> list[Job]:
        """Return the jobs of a request with their results."""
        pieces = divided(plans, leased.adapter, admitted.arrival.demand.tokens, timing)
        if len(pieces) > 1:
            return [await self._growing(name, leased, plans[0], pieces, timing, admitted)]
        brief = leased.engine.tokenizes_briskly and all(plan.only_texts for plan in plans)
        owner = leased.engine if brief else None  # vectors are decoded on a thread
        jobs = await self._tokenize(
            lambda: [plan.job(leased.adapter) for plan in plans], texts, timing, owner
        )
        timing.count_tokens(sum(job.input_tokens for job in jobs))
        await self._run(name, leased.engine, jobs, timing, admitted)
        return jobs

    async def _growing(
        self,
        name: str,
        leased: Leased,
        plan: ScorePlan | EncodePlan,
        pieces: list[list[int]],
        timing: RequestTiming,
        admitted: Admitted,
    ) -> Job:
        """Return the job of a request, whose first batches run while its later texts are tokenised."""
        engine, demand = leased.engine, admitted.arrival.demand
        ticket = PendingTicket(engine, [], timing, demand.priority, expected=demand.tokens)
        feed = Feed(plan, leased.adapter, pieces, ticket, self.worker, admitted.forget)
        with self.worker.waiting_for(ticket):
            with suppress(TicketClosed):  # `results` raises its error
                job = await self._tokenize(feed, plan.read_texts, timing)
                timing.count_tokens(job.input_tokens)
                admitted.queued(job.tokens)
            await self.worker.results(ticket)
        await self._finish_known(name, engine, [job], timing)
        feed.growing.finish()
        return job

    async def _run(
        self, model: str, engine: Engine, jobs: Sequence[Job], timing: RequestTiming, admitted: Admitted
    ) -> None:
        tokens = sum(job.tokens for job in jobs)
        admitted.queued(tokens)
        if any(job.work for job in jobs):
            await self.worker.run(engine, jobs, timing, admitted.arrival.demand.priority)
        await self._finish_known(model, engine, jobs, timing)

    async def _finish_known(
        self, model: str, engine: Engine, jobs: Sequence[Job], timing: RequestTiming
    ) -> None:
        for job in jobs:
            if job.known:
                await self.worker.score_known(engine, job, timing)
        self.metrics.tokens.labels(model).inc(sum(job.tokens for job in jobs))
