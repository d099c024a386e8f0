"""Model id → slot. A model is loaded once, on first use, however many requests arrive; each holds a lease.

available ──lease──▶ loading ──▶ loaded
                        └──────▶ failed ──(cool-down over, next lease)──▶ loading
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed, ModelLoading, ModelNotFound
from sie_server.serving.metrics import Metrics
from sie_server.serving.requests import profile_names
from sie_server.wire import ModelInfo, ModelState, Profile

log = logging.getLogger("sie_server.registry")
COOL_DOWN_S = 30.0  # a failed load is answered from memory for so long, then tried again
Loader = Callable[[ModelConfig], Awaitable[Engine]]


@dataclass
class Slot:
    """One model and where it stands."""

    config: ModelConfig
    state: ModelState = "available"
    engine: Engine | None = None
    error: ModelLoadFailed | None = None
    failed_at: float = 0.0
    attempts: int = 0
    leases: int = 0
    loading: asyncio.Task[None] | None = None
    load_started: float = 0.0


class Registry:
    """All slots; used on the event loop only."""

    def __init__(
        self, models: Mapping[str, ModelConfig], load: Loader, wait_s: float, metrics: Metrics
    ) -> None:
        self._slots = {name: Slot(config) for name, config in models.items()}
        self._load, self._wait_s, self._metrics = load, wait_s, metrics

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def info(self, name: str) -> ModelInfo:
        """What is known of one model; never loads it.

        Raises:
            ModelNotFound: with the ids that look alike.
        """
        return _info(name, self._slot(name))

    def profiles(self, name: str) -> Mapping[str, Profile]:
        """What `options.profile` may be, beside `default`.

        Raises:
            ModelNotFound
        """
        return self._slot(name).config.profiles

    def infos(self) -> list[ModelInfo]:
        """All models, by id."""
        return [_info(name, slot) for name, slot in sorted(self._slots.items())]

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Engine]:
        """The loaded model, kept for as long as the block runs.

        Raises:
            ModelNotFound, ModelLoadFailed, ModelLoading
        """
        slot = self._slot(name)
        if slot.engine is None:
            await self._wait_for_load(name, slot)
        assert slot.engine is not None
        slot.leases += 1
        try:
            yield slot.engine
        finally:
            slot.leases -= 1

    async def preload(self) -> None:
        """Load what is configured to be loaded at start; the first failure is raised."""
        for name, slot in self._slots.items():
            if slot.config.preload:
                self._start_load(name, slot)
                assert slot.loading is not None
                await slot.loading
                if slot.error:
                    raise slot.error

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            hint = suggest(name, list(self._slots))
            raise ModelNotFound(f"model {name!r} is not known here{hint or '; GET /v1/models lists what is'}")
        return self._slots[name]

    async def _wait_for_load(self, name: str, slot: Slot) -> None:
        if slot.loading is None:
            if slot.error and time.monotonic() - slot.failed_at < COOL_DOWN_S:
                raise slot.error
            self._start_load(name, slot)
        assert slot.loading is not None
        done, _ = await asyncio.wait([slot.loading], timeout=self._wait_s)
        if not done:
            waited = time.monotonic() - slot.load_started
            raise ModelLoading(
                f"model {name!r} is loading, {waited:.0f} s so far; try again", retry_after_s=5
            )
        if slot.error:
            raise slot.error

    def _start_load(self, name: str, slot: Slot) -> None:
        if slot.loading is None and slot.engine is None:
            slot.state, slot.error, slot.load_started = "loading", None, time.monotonic()
            slot.loading = asyncio.create_task(self._run_load(name, slot))

    async def _run_load(self, name: str, slot: Slot) -> None:
        slot.attempts += 1
        try:
            slot.engine = await self._load(slot.config)
            slot.state = "loaded"
            self._metrics.models.labels(name).set(1)
            log.info("loaded %s in %.1f s", name, time.monotonic() - slot.load_started)
        except Exception as error:
            slot.state, slot.failed_at, slot.error = (
                "failed",
                time.monotonic(),
                _load_error(name, slot, error),
            )
            log.error("could not load %s: %s", name, slot.error.message)
        finally:
            slot.loading = None


def _load_error(name: str, slot: Slot, error: Exception) -> ModelLoadFailed:
    if isinstance(error, ModelLoadFailed):
        error.details["attempts"] = slot.attempts
        return error
    log.exception("unexpected error while loading %s", name, exc_info=error)
    kind = type(error).__name__
    return ModelLoadFailed(
        f"cannot load {name}: {kind}", error_class=kind, permanent=False, attempts=slot.attempts
    )


def _info(name: str, slot: Slot) -> ModelInfo:
    entry, spec = slot.config.entry, slot.engine.spec if slot.engine else None
    return ModelInfo(
        name=name,
        inputs=["text"],
        outputs=spec.outputs if spec else entry.outputs if entry else [],
        dims=spec.dims if spec else entry.dims if entry else {},
        loaded=slot.state == "loaded",
        state=slot.state,
        last_error=slot.error.message if slot.error else None,
        max_sequence_length=slot.engine.max_seq_length
        if slot.engine
        else entry.max_seq_length
        if entry
        else None,
        profiles=profile_names(slot.config.profiles),
        revision=slot.config.revision,
        license=entry.license if entry else None,
        description=entry.description if entry else None,
        compat=spec.compat if spec else entry.compat if entry else False,
    )
