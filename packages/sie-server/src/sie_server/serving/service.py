"""The life of a request between decoding and encoding: lease, tokenise, queue, forward, read out, rank.

Steps ④ to ⑦ (queue, pack, forward, head) happen inside `worker.run`, on the device thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal, TypeVar

from msgspec import UNSET

from sie_server.catalog import ModelsDirectory, configured_adapters, with_configured
from sie_server.config import ServerConfig
from sie_server.engine.document_cache import DocumentCache
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job, ScoreTexts
from sie_server.engine.storage.footprint import automatic_budget
from sie_server.errors import InvalidInput
from sie_server.serving.collectors import CacheCollector, ModelCollector
from sie_server.serving.lifecycle.adapters import Adapters, Limits
from sie_server.serving.lifecycle.loader import Loader
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.operators.admin import ModelAdmin
from sie_server.serving.operators.operations import Operations
from sie_server.serving.operators.watcher import watch
from sie_server.serving.requests import options as requests
from sie_server.serving.requests import scoring as scores
from sie_server.serving.requests.candidates import candidates_of, count_as_cut, shortened
from sie_server.serving.requests.encoding import encoded, plan_of
from sie_server.serving.requests.inspection import inspected
from sie_server.serving.requests.ranking import rank
from sie_server.serving.worker import DeviceWorker
from sie_server.wire import (
    AdminAnswer,
    EncodeParams,
    EncodeRequest,
    EncodeResponse,
    InspectResponse,
    ScoreRequest,
    ScoreResponse,
    Timing,
    Usage,
)

Result = TypeVar("Result")


class Service:
    """Everything the server can do, without HTTP. Create and use it on one event loop."""

    def __init__(self, config: ServerConfig) -> None:
        # one thread per text batch: the pool shares cores between requests, the library's own threads would not
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.config = config
        self.metrics = Metrics()
        self.worker = DeviceWorker(config.max_queue_tokens, config.threads, self.metrics)
        cache = config.document_cache_mb * 2**20
        self.documents = DocumentCache(cache) if cache else None
        if self.documents:
            self.metrics.registry.register(CacheCollector(self.documents))
        self._loader = Loader(config, self.worker, self.documents)
        self._tokenizers = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="sie-tokenize")
        self._housekeeping: list[asyncio.Task[None]] = []
        self._open_registry()

    def _open_registry(self) -> None:
        config = self.config
        directory = ModelsDirectory(config.models_dir) if config.models_dir else None
        first = directory.scan() if directory else {}
        models = with_configured(config.model, first)
        budget = config.memory_budget_mb * 2**20 or automatic_budget(config.device)
        adapters = Adapters(
            self._loader,
            Limits(config.max_adapters, config.load_wait_s),
            self.metrics,
            configured_adapters(config.adapter, models),
        )
        self.registry = Registry(models, self._loader, config.load_wait_s, budget, self.metrics, adapters)
        self.metrics.registry.register(ModelCollector(self.registry.infos, budget))
        self.operations = Operations(self.registry)
        self._admin = ModelAdmin(self.registry, self.operations, config.models_dir, config.source_roots)
        if directory and config.models_dir_poll_s:
            watching = watch(
                lambda: with_configured(config.model, directory.scan(), first),
                models,
                self.operations,
                config.models_dir_poll_s,
            )
            self._housekeeping.append(asyncio.create_task(watching))
        if config.idle_unload_s:
            idle = self.operations.unload_idle(config.idle_unload_s)
            self._housekeeping.append(asyncio.create_task(idle))

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """Put the candidates in order of relevance to the query.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        name, options = self._options(model, request.options, "$.options", "score")
        instruction = requests.instruction_of(request.instruction, options, "$")
        asked, candidates = options.known, candidates_of(request)
        async with self.registry.lease(name, options.adapter) as (engine, adapter):
            _require_score(engine, model)
            if not engine.spec.takes_instruction:
                requests.refuse_instruction(instruction)
            scale, limit = scores.scale_of(engine.spec, asked), engine.limit(asked.max_seq_length)
            cutoff_layer = scores.cutoff_layer_of(engine.spec, asked)
            chunking = scores.chunking_of(asked, self.config.max_chunks)
            job = await self._tokenize(
                lambda: candidates.job(engine, limit, asked, instruction.text, chunking, adapter), timing
            )
            job.m3_scoring, job.cutoff_layer = scores.m3_scoring(asked), cutoff_layer
            await self._run(name, engine, job, timing)
        found = scores.per_document(job, asked.aggregate)
        entries = rank(
            request.items,
            found.raw,
            found.truncated,
            activation=scale.activation,
            top_n=asked.top_n,
            logits=bool(asked.return_logits),
            documents=bool(asked.return_documents),
            chunks=found.chunks,
        )
        most = chunking.most if chunking else None
        cut = requests.cut_warning(
            found.truncated, job.query_truncated, limit, job.query_limit, most, asked.max_document_tokens
        )
        warnings, usage = options.warnings + instruction.warnings + cut, Usage(job.input_tokens)
        return ScoreResponse(model, request.query.id, entries, usage, scale.score_type, warnings or UNSET)

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> InspectResponse:
        """What `score` with this request would read; nothing is run.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        name, options = self._options(model, request.options, "$.options", "score")
        instruction, asked = requests.instruction_of(request.instruction, options, "$"), options.known
        query, texts = requests.text_of(request.query, "$.query"), requests.texts_of(request.items)
        async with self.registry.lease(name, options.adapter) as (engine, _):
            _require_score(engine, model)
            if not engine.spec.takes_instruction:
                requests.refuse_instruction(instruction)
            limit = engine.limit(asked.max_seq_length)
            chunking = scores.chunking_of(asked, self.config.max_chunks)
            scores.cutoff_layer_of(engine.spec, asked)  # changes nothing that is read, but has to be right

            def look() -> InspectResponse:
                kept, short = shortened(engine, texts, asked.max_document_tokens)
                job = engine.tokenize_plain(ScoreTexts(query, kept, limit, instruction.text, chunking))
                count_as_cut(job, short)
                return inspected(model, engine, request.items, job, limit)

            return await self._tokenize(look, timing)

    async def encode(self, model: str, request: EncodeRequest, timing: RequestTiming) -> EncodeResponse:
        """Turn texts into vectors.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        params = request.params or EncodeParams()
        name, options = self._options(model, params.options, "$.params.options", "encode")
        instruction = requests.instruction_of(params.instruction, options, "$.params")
        texts = requests.texts_of(request.items)
        async with self.registry.lease(name, options.adapter) as (engine, adapter):
            plan = plan_of(model, engine.spec, params, options.known, instruction)
            limit = engine.limit(options.known.max_seq_length)
            prompted, is_query = [plan.prompt + text for text in texts], plan.is_query

            def read() -> Job:
                return engine.tokenize_encode(
                    prompted, plan.outputs, limit, is_query=is_query, adapter=adapter
                )

            job = await self._tokenize(read, timing)
            await self._run(name, engine, job, timing)
        items = [encoded(i, item, job, plan) for i, item in enumerate(request.items)]
        warnings = options.warnings + instruction.warnings + requests.cut_warning(job.truncated, False, limit)
        return EncodeResponse(model, items, _wire_timing(timing), Usage(job.input_tokens), warnings or UNSET)

    def _options(
        self, model: str, raw: dict[str, Any] | None, path: str, route: Literal["score", "encode"]
    ) -> tuple[str, requests.ParsedOptions]:
        """The model without an adapter's name in it, and the options, the adapter among them."""
        name, in_id = self.registry.resolve(model)
        options = requests.parse_options(raw, path, route, self.registry.profiles(name))
        return name, replace(options, adapter=requests.adapter_of(in_id, options.known, path))

    async def load(
        self, model: str, source: str | None = None, revision: str | None = None, pin: bool | None = None
    ) -> AdminAnswer:
        """See `ModelAdmin.load`."""
        return await self._admin.load(model, source, revision, pin)

    async def unload(self, model: str) -> AdminAnswer:
        """See `ModelAdmin.unload`."""
        return await self._admin.unload(model)

    async def swap(self, model: str, source: str, revision: str | None = None) -> AdminAnswer:
        """See `ModelAdmin.swap`."""
        return await self._admin.swap(model, source, revision)

    async def load_adapter(self, model: str, adapter: str, source: str) -> AdminAnswer:
        """See `ModelAdmin.load_adapter`."""
        return await self._admin.load_adapter(model, adapter, source)

    async def unload_adapter(self, model: str, adapter: str) -> AdminAnswer:
        """See `ModelAdmin.unload_adapter`."""
        return await self._admin.unload_adapter(model, adapter)

    async def close(self) -> None:
        """End all threads; requests still waiting fail."""
        for task in self._housekeeping:
            task.cancel()
        self.registry.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        self._loader.close()
        await asyncio.to_thread(self.worker.close)

    async def _tokenize(self, work: Callable[[], Result], timing: RequestTiming) -> Result:
        start = perf_counter()
        result = await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)
        timing.tokenization_ms += (perf_counter() - start) * 1e3
        return result

    async def _run(self, model: str, engine: Engine, job: Job, timing: RequestTiming) -> None:
        if job.work:
            await self.worker.run(engine, job, timing)
        if job.known:
            await self.worker.score_known(engine, job, timing)
        self.metrics.tokens.labels(model).inc(job.tokens)


def _require_score(engine: Engine, model: str) -> None:
    given = engine.spec.outputs
    if "score" not in given:
        raise InvalidInput(f"model {model!r} does not give 'score'; it gives {', '.join(given)}")


def _wire_timing(timing: RequestTiming) -> Timing:
    return Timing(
        round(timing.total_ms, 2),
        round(timing.queue_ms, 2),
        round(timing.tokenization_ms, 2),
        round(timing.inference_ms, 2),
    )
