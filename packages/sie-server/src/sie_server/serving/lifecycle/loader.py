"""Bringing up one version: fetch, load, measure, probe; and giving its memory back. Knows nothing of slots and leases.

Downloads run on threads of their own, several at once, and keep nothing else waiting; loading and freeing share one
thread, so that what was evicted is free before what took its place is read.
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

import numpy as np

from sie_server.catalog import ModelConfig, catalog, stamp_of
from sie_server.config import ServerConfig
from sie_server.engine.calibration import calibration
from sie_server.engine.device import out_of_memory
from sie_server.engine.document_cache import DocumentCache, ModelDocuments
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, ScoreTexts, Sparse
from sie_server.engine.lora.adapter import Adapter
from sie_server.engine.storage import footprint
from sie_server.engine.storage.source import fetch, is_path
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed, QueueFull, ResourceExhausted, SIEError
from sie_server.serving.lifecycle.slots import Progress, Version
from sie_server.serving.requests import scoring
from sie_server.serving.worker import DeviceWorker
from sie_server.wire import Options

log = logging.getLogger("sie_server.loading")
Result = TypeVar("Result")
DOWNLOADS, READERS = 4, 2
LOADING_THREADS = ("sie-fetch", "sie-read", "sie-load")
PROBE = ["when does rain fall", "rain falls tomorrow over the harbour", "stars burn hydrogen"]


class Fetched(NamedTuple):
    """A directory, and what changes when it or its files do."""

    directory: Path
    stamp: str


class Loader:
    """Used on the event loop; all that takes time happens on other threads."""

    def __init__(self, config: ServerConfig, worker: DeviceWorker, documents: DocumentCache | None) -> None:
        self._config, self._worker, self._documents = config, worker, documents
        self._fetching, self._reading, self._loading = (
            ThreadPoolExecutor(count, thread_name_prefix=name)
            for count, name in zip((DOWNLOADS, READERS, 1), LOADING_THREADS, strict=True)
        )
        self._measured: dict[
            tuple[Any, ...], tuple[int, float]
        ] = {}  # shape → batch tokens, tokens per second
        self.bytes_per_second: float | None = None  # of the loads so far

    async def fetch(self, model: ModelConfig, progress: Progress) -> tuple[Path, int]:
        """The checkpoint's directory, downloaded if need be, and the bytes its tensors will take."""
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
        """Where the files of a source are; a local directory does not wait for downloads."""
        return await self._on(
            self._reading if is_path(source) else self._fetching,
            lambda: fetch(source, revision=revision, offline=self._config.offline, tally=tally),
        )

    async def load(self, model: ModelConfig, directory: Path, progress: Progress) -> Engine:
        """The checkpoint on the device, with its batch size measured.

        Raises:
            ModelLoadFailed: with what is wrong and what to do.
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
        """Set the batch size: as configured, as found for a model of the same shape, or measured now.

        Measured pass by pass, so that other models' batches run in between.
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
        """A LoRA adapter's directory, downloaded if need be.

        Raises:
            ModelLoadFailed: it cannot be had.
        """
        directory = await self._directory(source)
        stamp = await self._on(self._reading, lambda: stamp_of(directory))
        return Fetched(directory, f"{directory};{stamp}")

    async def adapter_bytes(self, engine: Engine, directory: Path) -> int:
        """What the adapter will take in that engine."""
        return await self._on(self._reading, lambda: engine.adapter_bytes(directory))

    async def attach(self, model: ModelConfig, engine: Engine, directory: Path) -> Adapter:
        """A LoRA adapter for that engine.

        Raises:
            ModelLoadFailed: it cannot be applied to this model.
        """
        return await self._on(self._reading, lambda: engine.attach(directory, base_names(model)))

    async def probe(self, model: ModelConfig, engine: Engine, adapter: Adapter | None = None) -> None:
        """Put a request of every kind through a version that is to replace another, or through an adapter.

        Raises:
            ModelLoadFailed: it fails, or gives something else than finite numbers.
        """
        try:
            for job in await self._on(self._reading, lambda: _probes(engine, adapter)):
                results = await self._worker.call(lambda job=job: engine.run(job.work))  # type: ignore[misc]
                given = [r for w, r in zip(job.work, results, strict=True) if w.index != QUERY]
                if not all(_finite(result) for result in given):
                    what = f"the adapter {adapter.directory}" if adapter else model.source
                    check = "lora_alpha and weights" if adapter else "weights"
                    raise ModelLoadFailed(
                        f"{what} gives scores or vectors that are not finite numbers; check its {check}",
                        error_class="NotFinite",
                        permanent=True,
                        attempts=1,
                    )
        except Exception as error:
            raise as_load_error(model.id, error) from error
        finally:
            if cached := (adapter or engine).documents:
                cached.forget()  # nobody will ask for these texts, and the version may be gone by now

    async def free(self, version: Version) -> None:
        """Drop what belongs to a version nobody uses, and return its memory to the system."""
        # a caller who hung up has no lease any more, but the device may still be at work for it
        with suppress(QueueFull):  # there is no device thread any more
            await self._worker.call(lambda: None)

        def work() -> None:
            with footprint.freeing():
                if version.engine and version.engine.documents:
                    version.engine.documents.forget()
                version.attached.clear()  # adapters know the layers they change, and would keep them
                version.engine = None

        await self._on(self._loading, work)

    def close(self) -> None:
        """End the threads; what is running is not waited for."""
        for pool in (self._fetching, self._reading, self._loading):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def base_names(model: ModelConfig) -> list[str]:
    """Hub ids that its weights are known by; a directory says nothing, nor does an id of the operator's own choice."""
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
    """Load one model; blocking. `documents` is where late-interaction models cache what they read.

    Raises:
        ModelLoadFailed: with what is wrong and what to do.
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


def as_load_error(name: str, error: Exception, retry_after_s: float = 5.0) -> SIEError:
    """Whatever stopped a load, as an answer; keeps no hold on the frames it came through."""
    if isinstance(error, SIEError):
        return error
    if out_of_memory(error):
        return ResourceExhausted(
            f"the device ran out of memory while loading {name!r}; unload another model or lower memory_budget_mb",
            retry_after_s=retry_after_s,
        )
    log.error("unexpected error while loading %s", name, exc_info=error)
    kind = type(error).__name__
    return ModelLoadFailed(f"cannot load {name}: {kind}", error_class=kind, permanent=False, attempts=1)


def check_outputs(model: ModelConfig, old: Engine, new: Engine) -> None:
    """Refuse a version that cannot answer what clients ask of the one it is to replace.

    Raises:
        ModelLoadFailed: an output is missing, or its vectors are of another width than those clients have stored.
    """
    missing = [name for name in old.spec.outputs if name not in new.spec.outputs]
    widths, others = old.spec.dims, new.spec.dims
    if missing or any(others[name] != width for name, width in widths.items()):
        raise ModelLoadFailed(
            f"{model.source} gives {', '.join(new.spec.outputs)} {others or ''}, the version it would replace "
            f"{', '.join(old.spec.outputs)} {widths or ''}; unload {model.id!r} first if that is meant",
            error_class="OtherOutputs",
            permanent=True,
            attempts=1,
        )


def _probes(engine: Engine, adapter: Adapter | None) -> list[Job]:
    limit, outputs = engine.max_seq_length, engine.spec.outputs
    jobs = []
    if "score" in outputs:
        jobs.append(engine.tokenize_score(ScoreTexts(PROBE[0], PROBE[1:], limit), adapter=adapter))
        jobs[0].m3_scoring = scoring.m3_scoring(Options())
    if vectors := tuple(name for name in outputs if name != "score"):
        jobs.append(engine.tokenize_encode(PROBE, vectors, limit, adapter=adapter))
    return jobs


def _finite(result: Any) -> bool:
    """Of a score, of the vectors of a text, or of a listwise block."""
    values = result.values() if isinstance(result, dict) else [result]
    return all(np.isfinite(v.values if isinstance(v, Sparse) else v).all() for v in values)
