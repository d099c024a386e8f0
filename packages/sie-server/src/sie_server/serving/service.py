"""The life of a request between decoding and encoding: lease, tokenise, queue, forward, read out, rank.

`score_each` and `_scored` show the steps. `DeviceWorker.run` waits for steps ④ to ⑦ (queue, pack, forward, head), which
happen on the device thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from sie_server.catalog import (
    Calibration,
    CascadeEntry,
    ModelConfig,
    ModelsDirectory,
    configured_adapters,
    plain_calibration,
    with_configured,
)
from sie_server.config import ServerConfig
from sie_server.engine.device import device_threads, math_threads, require_device
from sie_server.engine.document_cache import DocumentCache
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.engine.storage.footprint import automatic_budget, free_gpu_bytes
from sie_server.errors import InferenceError, InvalidInput, shown
from sie_server.models.spec import EmbeddingSpec, ListwiseSpec
from sie_server.panics import NativePanic, catching_panics
from sie_server.serving.admission.admission import Admission, Admitted, Arrival
from sie_server.serving.admission.deadline import in_time
from sie_server.serving.backend import OnDeath, TokenWork
from sie_server.serving.cascades import CascadeRun, options_of
from sie_server.serving.collectors import CacheCollector, ModelCollector, ReplayCollector
from sie_server.serving.device.queue import Demand
from sie_server.serving.device.tickets import PendingTicket, TicketClosed
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.finishing import Part, finish_each, order_of, scores_of
from sie_server.serving.growing import Feed, divided
from sie_server.serving.lifecycle.adapters import Adapters, Limits
from sie_server.serving.lifecycle.budget import MemoryBudget
from sie_server.serving.lifecycle.registry import Leased, Registry
from sie_server.serving.lifecycle.slots import Slot
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.lifecycle.transitions import Transitions
from sie_server.serving.loading.loader import Loader
from sie_server.serving.loading.probe import check_device
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.operators.admin import ModelAdmin
from sie_server.serving.operators.differences import Scored
from sie_server.serving.operators.operations import Operations
from sie_server.serving.operators.replay import Replays
from sie_server.serving.operators.replay_buffer import Recorded, ReplayBuffer
from sie_server.serving.operators.watcher import watch
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
from sie_server.serving.tokenizing import TokenizerPool
from sie_server.serving.vendor import VendorOptions
from sie_server.wire import (
    EncodeParams,
    EncodeRequest,
    EncodeResponse,
    InspectResponse,
    ModelInfo,
    Options,
    ScoreRequest,
    ScoreResponse,
)

Result = TypeVar("Result")
log = logging.getLogger("sie_server.service")


class Service:
    """The server without HTTP. Create and use it on one event loop."""

    def __init__(self, config: ServerConfig, on_death: OnDeath | None = None) -> None:
        """`on_death` is called once if the device thread fails; after that no request can be served.

        Raises:
            ConfigError: the device is not available.
        """
        # One thread per text batch: the pool shares cores between requests, the library's own threads would not.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.config = config
        self.metrics = Metrics()
        require_device(config.device)
        threads = math_threads(config.threads, config.device)
        count = device_threads(config.device_threads, threads, config.device)
        log.info("device threads: %d, each with %d for products", count, threads // count)
        self.worker = DeviceWorker(
            config.max_queue_tokens, threads // count, self.metrics, on_death, check_device, count
        )
        self.metrics.queue_seconds.set_function(self.queued_seconds)
        self.admission = Admission(self.worker, config.max_wait_s)
        cache_bytes = config.document_cache_mb * 2**20
        self.documents = DocumentCache(cache_bytes) if cache_bytes else None
        if self.documents:
            self.metrics.registry.register(CacheCollector(self.documents))
        self._loader = Loader(config, self.worker, self.documents)
        self._tokenizers = TokenizerPool(config.tokenizer_threads)
        self._housekeeping: list[asyncio.Task[None]] = []
        self._open_registry()
        self._keep_running(self.worker.watch(config.device_stall_s))

    def _open_registry(self) -> None:
        config, metrics, loader = self.config, self.metrics, self._loader
        directory = ModelsDirectory(config.models_dir) if config.models_dir else None
        first_scan = directory.scan() if directory else {}
        if directory:
            directory.refuse_unusable(config.model)
        models = with_configured(config.model, first_scan)
        budget_bytes = config.memory_budget_mb * 2**20 or automatic_budget(config.device)
        for model in models.values():
            if model.problem:
                log.warning("the cascade %s is not served: %s", model.id, model.problem)
        table = SlotTable(models, loader)
        free = free_gpu_bytes(config.device)  # before any model is loaded
        for_models = None if free is None else free - config.document_cache_mb * 2**20
        budget = MemoryBudget(table, budget_bytes, config.load_wait_s, metrics, for_models)
        limits = Limits(config.max_adapters, config.load_wait_s, config.models_dir_poll_s)
        named = configured_adapters(config.adapter, models)
        adapters = Adapters(table, loader, budget, limits, named, metrics)
        transitions = Transitions(table, loader, budget, adapters, metrics)
        self.registry = Registry(table, loader, budget, adapters, transitions, config.load_wait_s)
        metrics.knows = table.by_id.__contains__
        metrics.registry.register(ModelCollector(self.registry.infos, budget_bytes))
        self.operations = Operations(self.registry)
        self.replays = Replays(
            ReplayBuffer(config.replay_buffer, config.replay_buffer_mb * 2**20), self.registry, self._score_on
        )
        metrics.registry.register(ReplayCollector(self.replays.buffer))
        self.admin = ModelAdmin(
            self.registry, self.operations, config.models_dir, config.source_roots, self.replays
        )
        if directory and config.models_dir_poll_s:

            def scan() -> Mapping[str, ModelConfig]:
                return with_configured(config.model, directory.scan(), first_scan)

            self._keep_running(watch(scan, models, self.operations, config.models_dir_poll_s))
        if config.idle_unload_s:
            self._keep_running(self.operations.unload_idle(config.idle_unload_s))

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        self._housekeeping.append(asyncio.create_task(work))

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
        self, work: Callable[[], Result], texts: Sequence[str], timing: RequestTiming
    ) -> Result:
        start = perf_counter()
        try:
            result = await self._tokenizers.run(catching_panics(work), texts)
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
        jobs = await self._tokenize(lambda: [plan.job(leased.adapter) for plan in plans], texts, timing)
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

    # ── models and state ──

    async def preload(self) -> None:
        """Load the models that are configured to load at start. The first failure is raised."""
        await self.operations.preload()

    def resolve(self, name: str) -> tuple[str, str | None]:
        """See `Registry.resolve`."""
        return self.registry.resolve(name)

    def calibration(self, name: str) -> Calibration | None:
        """See `Backend.calibration`. That of a cascade is that of its last stage."""
        model, adapter = self.registry.resolve(name)
        slot = self.registry.table.find(model)
        if slot and slot.config.stages:
            slot = self.registry.table.find(slot.config.stages[-1].model)
        return plain_calibration(slot.config) if slot and adapter is None else None

    def configured(self) -> list[str]:
        """Return the ids of the models that are named at start, in their order."""
        return self.registry.configured()

    async def infos(self) -> list[ModelInfo]:
        """See `Registry.infos`."""
        return self.registry.infos()

    async def info(self, name: str) -> ModelInfo:
        """See `Registry.info`."""
        return self.registry.info(name)

    async def first_with(self, output: str | None) -> str | None:
        """Return the first model named at start that has `output` (None: any).

        Other models are not considered, because which of them are loaded changes over time. A model that is not loaded
        yet is waited for, because only its files say what it can do.
        """
        for candidate in self.registry.configured():
            if not self.registry.info(candidate).outputs:
                async with self.registry.lease(candidate):
                    pass
            if output is None or output in self.registry.info(candidate).outputs:
                return candidate
        return None

    async def pooling(self, name: str) -> tuple[str, ...] | None:
        """Return how an embedding model pools; None for other models."""
        if self.registry.cascade(self.registry.resolve(name)[0]):
            return None
        async with self.registry.lease(name) as leased:
            head = leased.engine.spec.head
        return tuple(head.pooling) if isinstance(head, EmbeddingSpec) else None

    def sources(self) -> set[str]:
        """Return the places of all known checkpoints and adapters, which only admin callers may see."""
        found: set[str] = set()
        for slot in self.registry.table.all():
            configs = [slot.config, slot.pending, *(version.config for version in slot.versions)]
            found.update(config.source for config in configs if config and config.source)
            found.update(self.registry.adapters.names.sources(slot).values())
        return found

    async def metrics_text(self) -> bytes:
        """Return the metrics in the Prometheus exposition format."""
        return self.metrics.text()

    def unready(self) -> str | None:
        """Return why the server should get no requests now; None: it should."""
        health = self.worker.health
        return self.death() or (None if health.works else f"the device does not work: {health.trouble}")

    def queued_seconds(self) -> float:
        """Estimate the device time of all admitted work, in seconds; 0: the device is idle."""
        return self.worker.queued_seconds()

    def room(self, unused_s: float) -> int:
        """Return the bytes for models that are free or held by models that no request has used for `unused_s`."""
        return self.registry.budget.room(unused_s)

    def longest_unused_s(self) -> float:
        """Return for how long the model that would have to go for another one has not been used."""
        return self.registry.budget.longest_unused_s()

    def busy_seconds(self) -> float:
        """Return the time for which the device has run batches since the start."""
        return self.worker.busy_s

    def death(self) -> str | None:
        """Return why the device thread can no longer answer requests; None: it can."""
        health = self.worker.health
        if health.dead:
            return "the device thread has failed"
        if health.step_s > self.config.device_stall_s:
            return "the device thread is stuck"
        return None

    async def close(self) -> None:
        """End all threads. Requests that still wait fail."""
        for task in self._housekeeping:
            task.cancel()
        self.registry.close()
        self._tokenizers.close()
        self._loader.close()
        await asyncio.to_thread(self.worker.close)
