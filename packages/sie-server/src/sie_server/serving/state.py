"""The parts of a service, and its answers to probes, metrics and lists of models."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from typing import Any

from sie_server.catalog import (
    Calibration,
    ModelConfig,
    ModelsDirectory,
    configured_adapters,
    plain_calibration,
    with_configured,
)
from sie_server.config import ServerConfig
from sie_server.engine.device import thread_teams
from sie_server.engine.document_cache import DocumentCache
from sie_server.engine.storage.footprint import automatic_budget, free_gpu_bytes
from sie_server.models.spec import EmbeddingSpec
from sie_server.serving.admission.admission import Admission
from sie_server.serving.backend import OnDeath
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.lifecycle.adapters import Adapters, Limits
from sie_server.serving.lifecycle.budget import MemoryBudget
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.lifecycle.table import SlotTable
from sie_server.serving.lifecycle.transitions import Transitions
from sie_server.serving.loading.loader import Loader
from sie_server.serving.loading.probe import check_device
from sie_server.serving.metrics import Metrics
from sie_server.serving.operators.admin import ModelAdmin
from sie_server.serving.operators.collectors import CacheCollector, ModelCollector, ReplayCollector
from sie_server.serving.operators.operations import Operations
from sie_server.serving.operators.replay import Replays, ScoreOn
from sie_server.serving.operators.replay_buffer import ReplayBuffer
from sie_server.serving.operators.watcher import watch
from sie_server.serving.tokenizing import TokenizerPool
from sie_server.wire import (
    ModelInfo,
)

log = logging.getLogger("sie_server.service")


class ServiceState:
    """The parts of a service, and the state of its models and its device. Use it on one event loop."""

    def __init__(self, config: ServerConfig, on_death: OnDeath | None, score_on: ScoreOn) -> None:
        """`score_on` scores a recorded request with one version of a model. For `on_death` see `Service`.

        Raises:
            ConfigError: the device is not available.
        """
        # One thread per text batch: the pool shares cores between requests, the library's own threads would not.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.config = config
        self.metrics = Metrics()
        count, team = thread_teams(config.device_threads, config.threads, config.device)
        log.info("device threads: %d, each with %d for products", count, team)
        self.worker = DeviceWorker(config.max_queue_tokens, team, self.metrics, on_death, check_device, count)
        self.metrics.queue_seconds.set_function(self.queued_seconds)
        self.admission = Admission(self.worker, config.max_wait_s)
        cache_bytes = config.document_cache_mb * 2**20
        self.documents = DocumentCache(cache_bytes) if cache_bytes else None
        if self.documents:
            self.metrics.registry.register(CacheCollector(self.documents))
        self._loader = Loader(config, self.worker, self.documents)
        self._tokenizers = TokenizerPool(config.tokenizer_threads)
        self._housekeeping: list[asyncio.Task[None]] = []
        self._open_registry(score_on)
        self._keep_running(self.worker.watch(config.device_stall_s))

    def _open_registry(self, score_on: ScoreOn) -> None:
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
            ReplayBuffer(config.replay_buffer, config.replay_buffer_mb * 2**20), self.registry, score_on
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
