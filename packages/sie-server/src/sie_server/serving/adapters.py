"""LoRA adapters of the models that serve: attached on first use, once however many ask, a bounded number per model.

An adapter belongs to one version of a model. Requests hold what they use through their job, so one that is dropped
here is gone when the last of them is answered; nobody waits for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sie_server.catalog import ModelConfig
from sie_server.config import ConfigError, suggest
from sie_server.engine.lora import Adapter
from sie_server.errors import AdapterNotFound, Conflict, ModelLoading, SIEError
from sie_server.serving.loading import Loader, as_load_error
from sie_server.serving.metrics import Metrics
from sie_server.serving.slots import Attached, Slot, Version, cool_down_s, copy_of
from sie_server.wire import AdapterInfo

log = logging.getLogger("sie_server.adapters")


@dataclass(frozen=True)
class Limits:
    """How many adapters a version keeps, and how long a request waits for one."""

    most: int
    wait_s: float


class Adapters:
    """All adapters; used on the event loop only."""

    def __init__(
        self,
        loader: Loader,
        limits: Limits,
        metrics: Metrics,
        configured: Mapping[str, Mapping[str, str]],
    ) -> None:
        """`configured`: model → adapter → source, as the operator said at start."""
        self._loader, self._limits, self._metrics = loader, limits, metrics
        self._configured = configured

    def sources(self, slot: Slot, config: ModelConfig | None = None) -> dict[str, str]:
        """Name → source of every adapter that a model may be asked for; `config` is that of another version."""
        entry = (config or slot.config).entry
        return {**(entry.adapters if entry else {}), **self._configured.get(slot.name, {}), **slot.adapters}

    def infos(self, slot: Slot) -> list[AdapterInfo]:
        """For `GET /v1/models`."""
        attached = slot.serving.attached if slot.serving else {}
        return [
            AdapterInfo(name, source, name in attached and attached[name].adapter is not None)
            for name, source in sorted(self.sources(slot).items())
        ]

    async def get(self, slot: Slot, version: Version, name: str) -> Adapter:
        """The adapter, attached first if need be.

        Raises:
            AdapterNotFound: with the names that look alike.
            ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        held = self._held(slot, version, name)
        return held.adapter or await self._wait(slot, version, held, self._limits.wait_s)

    def check(self, slot: Slot, name: str, config: ModelConfig | None = None) -> str:
        """The source of an adapter that the model may be asked for.

        Raises:
            AdapterNotFound: with the names that look alike.
        """
        sources = self.sources(slot, config)
        if name not in sources:
            known = f"; it has {', '.join(sorted(sources))}" if sources else ", nor any other"
            raise AdapterNotFound(
                f"model {slot.name!r} has no adapter {name!r}{suggest(name, list(sources)) or known}"
            )
        return sources[name]

    def _held(self, slot: Slot, version: Version, name: str) -> Attached:
        source = self.check(slot, name, version.config)
        held = version.attached.get(name)
        if held and held.source != source:  # the name means another adapter now
            self._drop(version, held)
            held = None
        if held is None:
            held = version.attached[name] = Attached(name, source)
        held.last_use = time.monotonic()
        return held

    async def add(self, slot: Slot, version: Version, name: str, source: str) -> None:
        """Attach an adapter under a new name, however long it takes; nothing to do when it is there already.

        Raises:
            Conflict: the name is taken by another source.
            ModelLoadFailed, ResourceExhausted
        """
        before = self.sources(slot).get(name)
        if before not in (None, source):
            raise Conflict(f"adapter {name!r} of {slot.name!r} is from {before!r}; unload it first")
        slot.adapters[name] = source
        try:
            await self._attached(slot, version, name)
        except SIEError:
            if before is None:  # a name that never worked is not known
                slot.adapters.pop(name, None)
                version.attached.pop(name, None)
            raise

    def remove(self, slot: Slot, name: str) -> None:
        """Free an adapter; one that an admin caller brought is unknown from now on.

        Raises:
            AdapterNotFound
        """
        self.check(slot, name)
        slot.adapters.pop(name, None)
        for version in slot.versions:  # one that is about to serve may have it, too
            if name in version.attached:
                self._drop(version, version.attached[name])

    async def carry(self, slot: Slot, old: Version, new: Version) -> None:
        """Attach to a version that is about to serve what the one before it has; what does not fit is only logged.

        Whoever asks for such an adapter is told why it cannot be had.
        """
        for name in [name for name, held in old.attached.items() if held.adapter]:
            try:
                await self._attached(slot, new, name)
            except SIEError as error:
                log.warning("the new version of %s is without adapter %s: %s", slot.name, name, error.message)

    async def _attached(self, slot: Slot, version: Version, name: str) -> None:
        held = self._held(slot, version, name)
        if held.adapter is None:
            await self._wait(slot, version, held, None)

    async def _wait(self, slot: Slot, version: Version, held: Attached, seconds: float | None) -> Adapter:
        """The adapter, once it is attached; `seconds` None: however long that takes."""
        if held.task is None:
            if held.error and time.monotonic() < held.retry_at:
                raise copy_of(held.error)
            held.error = None
            held.task = asyncio.create_task(self._attach(slot, version, held))
        done, _ = await asyncio.wait([held.task], timeout=seconds)
        if not done:
            raise ModelLoading(
                f"adapter {held.name!r} of {slot.name!r} is loading",
                retry_after_s=max(1.0, self._limits.wait_s),
            )
        if held.error:
            raise copy_of(held.error)
        assert held.adapter is not None
        return held.adapter

    async def _attach(self, slot: Slot, version: Version, held: Attached) -> None:
        assert version.engine is not None
        name = f"{slot.name}:{held.name}"
        try:
            adapter = await self._loader.attach(version.config, version.engine, held.source)
        except Exception as error:
            held.error = copy_of(as_load_error(name, error))
            held.retry_at = time.monotonic() + cool_down_s(held.error)
            log.error("could not load %s: %s", name, held.error.message)
            self._metrics.adapter_failures.labels(slot.name).inc()
            return
        finally:
            held.task = None
        held.adapter, held.last_use = adapter, time.monotonic()
        if version.attached.get(held.name) is held:  # it may have been unloaded meanwhile
            version.nbytes += adapter.nbytes
            self._metrics.adapter_loads.labels(slot.name).inc()
            log.info("loaded %s from %s, %.1f MiB", name, held.source, adapter.nbytes / 2**20)
            self._evict(slot, version)

    def _evict(self, slot: Slot, version: Version) -> None:
        there = sorted((h for h in version.attached.values() if h.adapter), key=lambda held: held.last_use)
        for held in there[: max(0, len(there) - self._limits.most)]:
            log.info("unloading adapter %s of %s to make room", held.name, slot.name)
            self._metrics.adapter_evictions.labels(slot.name).inc()
            self._drop(version, held)

    def _drop(self, version: Version, held: Attached) -> None:
        del version.attached[held.name]
        if held.adapter and version.engine:
            version.nbytes -= held.adapter.nbytes
            version.engine.detach(held.adapter)


def configured_adapters(
    values: Iterable[str], models: Mapping[str, ModelConfig]
) -> dict[str, dict[str, str]]:
    """Values of `--adapter`, MODEL:NAME=SOURCE → model → name → source.

    Raises:
        ConfigError: another form, or a model nobody knows.
    """
    found: dict[str, dict[str, str]] = {}
    for value in values:
        target, _, source = value.partition("=")
        model, _, name = target.rpartition(":")
        if not (model and name and source):
            raise ConfigError(f"--adapter {value!r}: expected MODEL:NAME=DIRECTORY or MODEL:NAME=HUB_ID")
        if model not in models:
            raise ConfigError(f"--adapter {value!r}: {model!r} is no model{suggest(model, list(models))}")
        found.setdefault(model, {})[name] = source
    return found
