"""Loading one version: fetch, load, measure, probe; and freeing its memory. Knows nothing of slots and leases.

Downloads run on their own threads, several at once, and block nothing else. Memory is freed on the thread that loads,
unless that thread is busy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sie_server.catalog import ModelConfig, catalog, stamp_of
from sie_server.catalog.revisions import is_path
from sie_server.config import ServerConfig
from sie_server.engine.calibration import calibration
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.storage import footprint
from sie_server.engine.storage.source import fetch, unsupported
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed, QueueFull
from sie_server.panics import catching_panics
from sie_server.serving.device.worker import DeviceWorker
from sie_server.serving.loading.failures import as_load_error
from sie_server.serving.loading.lanes import Lane
from sie_server.serving.loading.probe import is_finite, not_finite, probe_jobs
from sie_server.serving.loading.progress import Progress

log = logging.getLogger("sie_server.loading")
Shape = tuple[Any, ...]  # models of equal shape have the same best batch size
DOWNLOADS, READERS = 4, 2
LOADING_THREADS = ("sie-fetch", "sie-read", "sie-load", "sie-free")
LEFT_S = 5.0  # how long a load waits for the thread of an earlier one that was given up


class Fetched(NamedTuple):
    """A directory, and a stamp that changes when the directory or its files change."""

    directory: Path
    stamp: str

    @property
    def source(self) -> str:
        return str(self.directory)


class Measured(NamedTuple):
    """What calibration found for the models of one shape."""

    batch_tokens: int
    tokens_per_second: float
    activation_bytes: int


class Loader:
    """Used on the event loop. Every step that takes time runs on another thread."""

    def __init__(self, config: ServerConfig, worker: DeviceWorker, documents: DocumentCache | None) -> None:
        self._config, self._worker, self._documents = config, worker, documents
        self._lanes = [
            Lane(name, count) for name, count in zip(LOADING_THREADS, (DOWNLOADS, READERS, 1, 1), strict=True)
        ]
        self._fetching, self._reading, self._loading, self._freeing = self._lanes
        self._measured: dict[Shape, Measured] = {}
        self.bytes_per_second: float | None = None  # of the last load

    @property
    def stall_s(self) -> float:
        """Seconds without progress after which a load is given up."""
        return self._config.load_stall_s

    async def fetch(self, model: ModelConfig, progress: Progress) -> tuple[Path, int]:
        """Download the checkpoint if it is not local; return its directory and the bytes its tensors will take.

        Raises:
            ModelLoadFailed: with the cause and the next step.
        """
        config = self._config
        directory = await self._directory(model.source, progress, model.revision)
        need = await self._reading.run(
            lambda: footprint.needed_bytes(
                directory,
                device=config.device,
                dtype=config.dtype,
                template=model.template,
                label=model.label,
            ),
            model.source,
            progress,
        )
        return directory, need

    async def _directory(self, source: str, progress: Progress, revision: str | None = None) -> Path:
        """Return the directory of a source. A local directory does not wait for downloads."""
        await self._wait_for_left(source)
        tally = progress.tally
        return await (self._reading if is_path(source) else self._fetching).run(
            lambda: fetch(source, revision=revision, offline=self._config.offline, tally=tally),
            source,
            progress,
        )

    async def _wait_for_left(self, source: str) -> None:
        """Wait until no thread of a load that was given up reads the source, so that threads do not pile up."""
        end = time.monotonic() + LEFT_S
        while any(lane.left_running(source) for lane in self._lanes):
            if time.monotonic() > end:
                raise ModelLoadFailed(
                    f"an earlier load from {source} was given up and still blocks its thread; check that the files can "
                    "be read. If it never ends, restart the server",
                    error_class="LoadStalled",
                    permanent=False,
                    attempts=1,
                )
            await asyncio.sleep(0.05)

    async def load(self, model: ModelConfig, directory: Path, progress: Progress) -> Engine:
        """Load the checkpoint onto the device and measure its batch size.

        Raises:
            ModelLoadFailed: with the cause and the next step.
        """
        log.info("loading %s from %s: %.1f MiB", model.id, directory, (progress.tally.total or 0) / 2**20)
        started = time.monotonic()
        engine = await self._loading.run(
            lambda: load_engine(model, directory, self._config, self._documents, progress.tally),
            model.source,
            progress,
        )
        self.bytes_per_second = engine.memory_bytes / max(1e-3, time.monotonic() - started)
        if engine.spec.warning:
            log.warning("%s: %s", model.id, engine.spec.warning)
        progress.enter("measure")
        await self._measure(model, engine, progress)
        return engine

    async def _measure(self, model: ModelConfig, engine: Engine, progress: Progress) -> None:
        """Set the batch size: the configured one, the one found for a model of the same shape, or a new measurement.

        The measurement runs pass by pass, so that batches of other models run in between.
        """
        fixed = self._config.batch_tokens
        if fixed and engine.device.type == "cpu":
            engine.batch_tokens = fixed
            return
        shape = (
            engine.spec.architecture,
            engine.spec.backbone.hidden_size,
            engine.dtype,
            engine.int8,
            engine.memory_bytes,
            engine.max_seq_length,
        )
        if shape not in self._measured:
            # on a GPU a configured size is measured too: the budget must know what a batch takes
            steps, done = calibration(engine, size=fixed), object()
            while await self._worker.call(catching_panics(lambda: next(steps, done))) is not done:
                progress.touch()
            self._measured[shape] = Measured(
                engine.batch_tokens, engine.tokens_per_second, engine.activation_bytes
            )
            log.info("measured %s: batches of %d tokens%s", model.id, engine.batch_tokens, _peak(engine))
        engine.batch_tokens, engine.tokens_per_second, engine.activation_bytes = self._measured[shape]

    async def fetch_adapter(self, source: str, progress: Progress) -> Fetched:
        """Download a LoRA adapter if it is not local.

        Raises:
            ModelLoadFailed: the adapter is not available.
        """
        directory = await self._directory(source, progress)
        return await self._reading.run(lambda: stamped(directory), source, progress)

    async def adapter_bytes(self, engine: Engine, fetched: Fetched, progress: Progress) -> int:
        """Return the bytes that the adapter will take in that engine."""
        directory = fetched.directory
        return await self._reading.run(lambda: engine.adapter_bytes(directory), fetched.source, progress)

    async def attach(
        self, model: ModelConfig, engine: Engine, fetched: Fetched, progress: Progress
    ) -> Adapter:
        """Read a LoRA adapter for that engine.

        Raises:
            ModelLoadFailed: the adapter does not fit this model.
        """
        directory = fetched.directory
        return await self._reading.run(
            lambda: engine.attach(directory, base_names(model)), fetched.source, progress
        )

    async def probe(self, model: ModelConfig, engine: Engine, adapter: Adapter | None = None) -> None:
        """Run one small request of every kind through a new version or adapter.

        Raises:
            ModelLoadFailed: the request fails, or its results are not finite numbers.
        """
        try:
            for job in await self._reading.run(lambda: probe_jobs(engine, adapter)):
                results = await self._worker.call(catching_panics(partial(engine.run, job.work)))
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
            await self._worker.settled()

        def work() -> None:
            with footprint.freeing():
                release()

        # The heap of the thread that reads checkpoints returns more, but a load that hangs must not keep the memory.
        await (self._loading if self._loading.idle else self._freeing).run(work)

    def close(self) -> None:
        """End the threads without waiting for running work."""
        for lane in self._lanes:
            lane.close()


def _peak(engine: Engine) -> str:
    peak = engine.activation_bytes
    return f", which take up to {peak / 2**20:,.1f} MiB in addition to the model" if peak else ""


def stamped(directory: Path) -> Fetched:
    """Return a directory with a stamp of its files; blocking.

    Raises:
        ModelLoadFailed: the directory is unreadable or has too many entries.
    """
    try:
        return Fetched(directory, f"{directory};{stamp_of(directory)}")
    except OSError as error:
        raise unsupported(directory, error) from error


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
    engine = Engine(
        directory,
        device=config.device,
        dtype=config.dtype,
        max_seq_length=model.max_seq_length,
        template=model.template,
        prompts=model.prompts,
        truncation=model.truncation,
        label=model.label,
        documents=ModelDocuments(documents, model.id, model.revision) if documents else None,
        tally=tally,
    )
    if (model.max_seq_length or 0) > engine.max_seq_length:
        log.warning(
            "%s: its catalog entry has max_seq_length %d, but the model in %s has positions for %d tokens, which is "
            "the limit now; lower max_seq_length in the entry",
            model.id,
            model.max_seq_length,
            directory,
            engine.max_seq_length,
        )
    return engine
