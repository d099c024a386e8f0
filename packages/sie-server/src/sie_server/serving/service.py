"""The life of a request between decoding and encoding: lease, tokenise, queue, forward, read out, rank.

Steps ④ to ⑦ (queue, pack, forward, head) happen inside `worker.run`, on the device thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

from msgspec import UNSET

from sie_server.catalog import ModelConfig, known_models
from sie_server.config import ServerConfig
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import Job
from sie_server.engine.source import fetch
from sie_server.errors import InvalidInput
from sie_server.serving import requests, scores
from sie_server.serving.cache_metrics import CacheCollector
from sie_server.serving.candidates import candidates_of
from sie_server.serving.encoding import encoded, plan_of
from sie_server.serving.inspecting import inspected
from sie_server.serving.metrics import Metrics, RequestTiming
from sie_server.serving.rank import rank
from sie_server.serving.registry import Registry
from sie_server.serving.worker import DeviceWorker
from sie_server.wire import (
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
        models = known_models(config.model, config.models_dir)
        budget = config.document_cache_mb * 2**20
        self.documents = DocumentCache(budget) if budget else None
        if self.documents:
            self.metrics.registry.register(CacheCollector(self.documents))
        self.registry = Registry(models, self._load, config.load_wait_s, self.metrics)
        self._tokenizers = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="sie-tokenize")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="sie-load")

    async def score(self, model: str, request: ScoreRequest, timing: RequestTiming) -> ScoreResponse:
        """Put the candidates in order of relevance to the query.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        options = self._options(model, request.options, "$.options", "score")
        instruction = requests.instruction_of(request.instruction, options, "$")
        asked, candidates = options.known, candidates_of(request)
        async with self.registry.lease(model) as engine:
            _require_score(engine, model)
            if not engine.spec.takes_instruction:
                requests.refuse_instruction(instruction)
            scale, limit = scores.scale_of(engine.spec, asked), engine.limit(asked.max_seq_length)
            cutoff_layer = scores.cutoff_layer_of(engine.spec, asked)
            chunking = scores.chunking_of(asked, self.config.max_chunks)
            job = await self._tokenize(
                lambda: candidates.job(engine, limit, instruction.text, chunking), timing
            )
            job.m3_scoring, job.cutoff_layer = scores.m3_scoring(asked), cutoff_layer
            await self._run(model, engine, job, timing)
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
        cut = requests.cut_warning(found.truncated, job.query_truncated, limit, job.query_limit, most)
        warnings, usage = options.warnings + instruction.warnings + cut, Usage(job.input_tokens)
        return ScoreResponse(model, request.query.id, entries, usage, scale.score_type, warnings or UNSET)

    async def inspect(self, model: str, request: ScoreRequest, timing: RequestTiming) -> InspectResponse:
        """What `score` with this request would read; nothing is run.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        options = self._options(model, request.options, "$.options", "score")
        instruction, asked = requests.instruction_of(request.instruction, options, "$"), options.known
        query, texts = requests.text_of(request.query, "$.query"), requests.texts_of(request.items)
        async with self.registry.lease(model) as engine:
            _require_score(engine, model)
            if not engine.spec.takes_instruction:
                requests.refuse_instruction(instruction)
            limit = engine.limit(asked.max_seq_length)
            chunking = scores.chunking_of(asked, self.config.max_chunks)
            scores.cutoff_layer_of(engine.spec, asked)  # changes nothing that is read, but has to be right

            def look() -> InspectResponse:
                job = engine.tokenize_plain(query, texts, limit, instruction.text, chunking)
                return inspected(model, engine, request.items, job, limit)

            return await self._tokenize(look, timing)

    async def encode(self, model: str, request: EncodeRequest, timing: RequestTiming) -> EncodeResponse:
        """Turn texts into vectors.

        Raises:
            SIEError: any of its kinds but the HTTP ones.
        """
        params = request.params or EncodeParams()
        options = self._options(model, params.options, "$.params.options", "encode")
        instruction = requests.instruction_of(params.instruction, options, "$.params")
        texts = requests.texts_of(request.items)
        async with self.registry.lease(model) as engine:
            plan = plan_of(model, engine.spec, params, options.known, instruction)
            limit = engine.limit(options.known.max_seq_length)
            prompted, is_query = [plan.prompt + text for text in texts], plan.is_query
            job = await self._tokenize(
                lambda: engine.tokenize_encode(prompted, plan.outputs, limit, is_query=is_query), timing
            )
            await self._run(model, engine, job, timing)
        items = [encoded(i, item, job, plan) for i, item in enumerate(request.items)]
        warnings = options.warnings + instruction.warnings + requests.cut_warning(job.truncated, False, limit)
        return EncodeResponse(model, items, _wire_timing(timing), Usage(job.input_tokens), warnings or UNSET)

    def _options(
        self, model: str, raw: dict[str, Any] | None, path: str, route: Literal["score", "encode"]
    ) -> requests.ParsedOptions:
        return requests.parse_options(raw, path, route, self.registry.profiles(model))

    async def close(self) -> None:
        """End all threads; requests still waiting fail."""
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
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

    async def _load(self, model: ModelConfig) -> Engine:
        engine = await asyncio.get_running_loop().run_in_executor(
            self._loader, load_engine, model, self.config, self.documents
        )
        if self.config.batch_tokens:
            engine.batch_tokens = self.config.batch_tokens
        else:
            await self.worker.call(engine.calibrate)
        return engine


def load_engine(model: ModelConfig, config: ServerConfig, documents: DocumentCache | None = None) -> Engine:
    """Fetch and load one model; blocking. `documents` is where late-interaction models cache what they read.

    Raises:
        ModelLoadFailed: with what is wrong and what to do.
    """
    directory: Path = fetch(model.source, revision=model.revision, offline=config.offline)
    return Engine(
        directory,
        device=config.device,
        dtype=config.dtype,
        max_seq_length=model.max_seq_length,
        template=model.template,
        prompts=model.prompts,
        documents=ModelDocuments(documents, model.id, model.revision) if documents else None,
    )


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
