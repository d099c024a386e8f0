"""Loading one version: fetch, load, measure, probe; and freeing its memory. Knows nothing of slots and leases.

Downloads run on their own threads, several at once, and block nothing else. Loading and freeing share one thread, so
that the memory of an evicted model is free before the model that replaces it is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sie_server.catalog import ModelConfig, catalog, stamp_of
from sie_server.config import ServerConfig
from sie_server.engine.calibration import calibration
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.storage import footprint
from sie_server.engine.storage.source import fetch, is_path
from sie_server.engine.storage.tally import Tally
from sie_server.errors import QueueFull
from sie_server.serving.loading.failures import as_load_error
from sie_server.serving.loading.probe import is_finite, not_finite, probe_jobs
from sie_server.serving.loading.progress import Progress
from sie_server.serving.worker import DeviceWorker

log = logging.getLogger("sie_server.loading")
Result = TypeVar("Result")
Shape = tuple[Any, ...]  # models of equal shape have the same best batch size
DOWNLOADS, READERS = 4, 2
LOADING_THREADS = ("sie-fetch", "sie-read", "sie-load")


class Fetched(NamedTuple):
    """A directory, and a stamp that changes when the directory or its files change."""

    directory: Path
    stamp: str


class Loader:
    """Used on the event loop. Every step that takes time runs on another thread."""

    def __init__(self, config: ServerConfig, worker: DeviceWorker, documents: DocumentCache | None) -> None:
        self._config, self._worker, self._documents = config, worker, documents
        self._fetching, self._reading, self._loading = (
            ThreadPoolExecutor(count, thread_name_prefix=name)
            for count, name in zip((DOWNLOADS, READERS, 1), LOADING_THREADS, strict=True)
        )
        self._measured: dict[Shape, tuple[int, float]] = {}  # batch tokens, tokens per second
        self.bytes_per_second: float | None = None  # of the last load

    async def fetch(self, model: ModelConfig, progress: Progress) -> tuple[Path, int]:
        """Download the checkpoint if it is not local; return its directory and the bytes its tensors will take."""
        config = self._config
        directory = await self._directory(model.source, model.revision, progress.tally)
        need = await self._on(
            self._reading,
            lambda: footprint.needed_bytes(
                directory, device=config.device, dtype=config.dtype, template=model.template
            ),
        )
        return directory, need

    async def _directory(self, source: str, revision: str | None = None, tally: Tally | None = None) -> Path:
        """Return the directory of a source. A local directory does not wait for downloads."""
        return await self._on(
            self._reading if is_path(source) else self._fetching,
            lambda: fetch(source, revision=revision, offline=self._config.offline, tally=tally),
        )

    async def load(self, model: ModelConfig, directory: Path, progress: Progress) -> Engine:
        """Load the checkpoint onto the device and measure its batch size.

        Raises:
            ModelLoadFailed: with the cause and the next step.
        """
        log.info("loading %s from %s: %.1f MiB", model.id, directory, (progress.tally.total or 0) / 2**20)
        started = time.monotonic()
        engine = await self._on(
            self._loading,
            lambda: load_engine(model, directory, self._config, self._documents, progress.tally),
        )
        self.bytes_per_second = engine.memory_bytes / max(1e-3, time.monotonic() - started)
        progress.enter("measure")
        await self._measure(model, engine)
        return engine

    async def _measure(self, model: ModelConfig, engine: Engine) -> None:
        """Set the batch size: the configured one, the one found for a model of the same shape, or a new measurement.

        The measurement runs pass by pass, so that batches of other models run in between.
        """
        if self._config.batch_tokens:
            engine.batch_tokens = self._config.batch_tokens
            return
        shape = (
            engine.spec.architecture,
            engine.spec.backbone.hidden_size,
            engine.dtype,
            engine.memory_bytes,
        )
        if shape not in self._measured:
            steps, done = calibration(engine), object()
            while await self._worker.call(lambda: next(steps, done)) is not done:
                pass
            self._measured[shape] = engine.batch_tokens, engine.tokens_per_second
            log.info("measured %s: batches of %d tokens", model.id, engine.batch_tokens)
        engine.batch_tokens, engine.tokens_per_second = self._measured[shape]

    async def fetch_adapter(self, source: str) -> Fetched:
        """Download a LoRA adapter if it is not local.

        Raises:
            ModelLoadFailed: the adapter is not available.
        """
        directory = await self._directory(source)
        stamp = await self._on(self._reading, lambda: stamp_of(directory))
        return Fetched(directory, f"{directory};{stamp}")

    async def adapter_bytes(self, engine: Engine, directory: Path) -> int:
        """Return the bytes that the adapter will take in that engine."""
        return await self._on(self._reading, lambda: engine.adapter_bytes(directory))

    async def attach(self, model: ModelConfig, engine: Engine, directory: Path) -> Adapter:
        """Read a LoRA adapter for that engine.

        Raises:
            ModelLoadFailed: the adapter does not fit this model.
        """
        return await self._on(self._reading, lambda: engine.attach(directory, base_names(model)))

    async def probe(self, model: ModelConfig, engine: Engine, adapter: Adapter | None = None) -> None:
        """Run one small request of every kind through a new version or adapter.

        Raises:
            ModelLoadFailed: the request fails, or its results are not finite numbers.
        """
        try:
            for job in await self._on(self._reading, lambda: probe_jobs(engine, adapter)):
                results = await self._worker.call(lambda job=job: engine.run(job.work))  # type: ignore[misc]
                pairs = zip(job.work, results, strict=True)
                if not all(is_finite(result) for work, result in pairs if work.index != QUERY):
                    raise not_finite(model, adapter)
        except Exception as error:
            raise as_load_error(model.id, error) from error
        finally:
            # No request contains the texts of a probe.
            if documents := (adapter or engine).documents:
                documents.forget()

    async def free(self, release: Callable[[], None]) -> None:
        """Call `release`, which drops the tensors of an unused version, and return their memory to the system."""
        # The device may still work for a caller that hung up and has no lease.
        with suppress(QueueFull):  # the device thread has ended
            await self._worker.call(lambda: None)

        def work() -> None:
            with footprint.freeing():
                release()

        await self._on(self._loading, work)

    def close(self) -> None:
        """End the threads without waiting for running work."""
        for pool in (self._fetching, self._reading, self._loading):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def base_names(model: ModelConfig) -> list[str]:
    """Return the hub ids of the model's weights; an adapter that names another base model is refused.

    A local directory has no hub id, and an id that the operator chose is not a hub id.
    """
    packaged = catalog().get(model.id)
    if packaged and packaged.entry and packaged.source == model.source:
        return [packaged.entry.id, packaged.entry.source]
    return [] if is_path(model.source) else [model.source]


def load_engine(
    model: ModelConfig,
    directory: Path,
    config: ServerConfig,
    documents: DocumentCache | None = None,
    tally: Tally | None = None,
) -> Engine:
    """Load one model; blocking. Late-interaction models cache their document vectors in `documents`.

    Raises:
        ModelLoadFailed: with the cause and the next step.
    """
    return Engine(
        directory,
        device=config.device,
        dtype=config.dtype,
        max_seq_length=model.max_seq_length,
        template=model.template,
        prompts=model.prompts,
        documents=ModelDocuments(documents, model.id, model.revision) if documents else None,
        tally=tally,
    )
