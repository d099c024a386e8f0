"""Operations of admin callers: checks the ids and sources that they may name, and describes the result."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from msgspec import UNSET, structs

from sie_server.catalog import ModelConfig, catalog, id_problem
from sie_server.catalog.revisions import is_path
from sie_server.errors import InvalidInput, shown
from sie_server.files import expanded
from sie_server.serving.lifecycle.registry import Registry
from sie_server.serving.lifecycle.transitions import Hold
from sie_server.serving.operators.operations import Operations, same_source
from sie_server.serving.operators.replay import NotSwitched, Replays
from sie_server.wire import AdminAnswer

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)


class ModelAdmin:
    """Load, unload and swap for callers of the admin routes, which may name fewer sources than the command line."""

    def __init__(
        self,
        registry: Registry,
        operations: Operations,
        models_dir: str | None,
        source_roots: Sequence[str],
        replays: Replays,
    ) -> None:
        self._registry, self._operations, self._replays = registry, operations, replays
        roots = [models_dir, *source_roots] if models_dir else source_roots
        self._roots = [expanded(root).resolve() for root in roots]

    async def load(
        self, model: str, source: str | None = None, revision: str | None = None, pin: bool | None = None
    ) -> AdminAnswer:
        """Load a model now. With a source, the model may be new.

        Raises:
            InvalidInput, ModelNotFound, Conflict, ModelLoadFailed, ResourceExhausted
        """
        began = time.monotonic()
        if source is not None and model not in self._registry:
            if problem := id_problem(model):
                raise InvalidInput(f"the id {problem} - at `$.model`")
            config = ModelConfig(model, source)
        else:
            config = self._registry.slot(model).config
        elsewhere = source is not None or revision is not None
        await self._operations.load(model, self._moved(config, source, revision) if elsewhere else None, pin)
        return self.describe(model, began)

    async def unload(self, model: str) -> AdminAnswer:
        """Unpin the model, finish its running requests and free its memory. The next request loads it again.

        Raises:
            ModelNotFound, Conflict
        """
        began = time.monotonic()
        await self._operations.unload(model)
        return self.describe(model, began)

    async def swap(
        self,
        model: str,
        source: str,
        revision: str | None = None,
        replay: int | None = None,
        max_difference: float | None = None,
        *,
        hold: Hold | None = None,
    ) -> AdminAnswer:
        """Replace the weights of a model between two requests. A model that is not loaded is loaded from `source`.

        With `replay`, both versions score that many of the last requests first. The switch follows only if they differ
        by `max_difference` at most. `hold` is awaited before the switch (`Operations.swap`).

        Raises:
            InvalidInput, ModelNotFound, Conflict
            ModelLoadFailed, ResourceExhausted: the old version keeps serving.
        """
        began = time.monotonic()
        if max_difference is not None and replay is None:
            raise InvalidInput("max_difference needs replay - at `$.max_difference`")
        config = self._moved(self._registry.slot(model).config, source, revision)
        if replay is None:
            await self._operations.swap(config, hold)
            return self.describe(model, began)
        comparison = self._replays.comparison(model, replay, max_difference)
        with suppress(NotSwitched):
            await self._operations.swap(config, comparison.hold)
        return structs.replace(self.describe(model, began), replay=comparison.report or UNSET)

    def move(self, model: str, source: str | None, revision: str | None) -> None:
        """Load the model from elsewhere the next time, if it is not loaded now.

        Raises:
            InvalidInput, ModelNotFound
        """
        if model not in self._registry:
            self._registry.add(ModelConfig(model, self.check_source(source or "")))
        slot = self._registry.slot(model)
        config = self._moved(slot.config, source, revision)
        if slot.serving is None and slot.task is None:
            slot.config, slot.error, slot.swap_error = config, None, None

    def serves(self, model: str, source: str, revision: str | None) -> bool:
        """Return whether the model is loaded from there.

        Raises:
            InvalidInput, ModelNotFound
        """
        slot = self._registry.slot(model)
        return slot.serving is not None and same_source(
            slot.config, self._moved(slot.config, source, revision)
        )

    def name_adapters(self, model: str, adapters: Mapping[str, str]) -> None:
        """Make exactly these adapters known in addition to the configured ones; each is loaded by its first request.

        Raises:
            InvalidInput, ModelNotFound
        """
        slot = self._registry.slot(model)
        for name in slot.adapters.keys() - adapters.keys():
            self._registry.adapters.remove(slot, name)
        slot.adapters.update({name: self.check_source(source) for name, source in adapters.items()})

    def describe(self, model: str, began: float | None = None) -> AdminAnswer:
        """Return the state of a model; `began` is when the request for it did.

        Raises:
            ModelNotFound
        """
        began = time.monotonic() if began is None else began
        slot = self._registry.slot(model)
        return AdminAnswer(
            model=model,
            state=slot.state,
            source=slot.config.shown_source,
            revision=slot.config.revision,
            pinned=slot.pinned,
            memory_bytes=slot.memory_bytes,
            seconds=round(time.monotonic() - began, 3),
            adapters=self._registry.info(model).adapters,
        )

    async def load_adapter(self, model: str, adapter: str, source: str) -> AdminAnswer:
        """Load a LoRA adapter now, and its model first if it is not loaded.

        Raises:
            InvalidInput, ModelNotFound, Conflict, ModelLoadFailed, ModelLoading, ResourceExhausted
        """
        began = time.monotonic()
        await self._operations.load_adapter(model, adapter, self.check_source(source))
        return self.describe(model, began)

    async def unload_adapter(self, model: str, adapter: str) -> AdminAnswer:
        """Free a LoRA adapter.

        Raises:
            ModelNotFound, AdapterNotFound
        """
        began = time.monotonic()
        self._operations.unload_adapter(model, adapter)
        return self.describe(model, began)

    def _moved(self, config: ModelConfig, source: str | None, revision: str | None) -> ModelConfig:
        """Return the model with other weights and otherwise unchanged."""
        checked = config.source if source is None else self.check_source(source)
        if revision is not None:
            if is_path(checked):
                raise InvalidInput("a directory has no revision; omit it - at `$.revision`")
            if not REVISION.fullmatch(revision) or ".." in revision:
                raise InvalidInput("expected the name of a branch or tag, or a commit - at `$.revision`")
        return replace(config, source=checked, revision=revision, stamp=None)

    def check_source(self, source: str) -> str:
        """Accept a hub id, weights of this package, or a directory under one of the roots.

        The error for any other directory is the same whether it exists or not.

        Raises:
            InvalidInput: the source is none of these.
        """
        own = {model.shown_source: model.source for model in catalog().values()}
        if source.startswith("embedded:") and source in own:
            return own[source]
        if not is_path(source):
            if not HUB_ID.fullmatch(source) or ".." in source:
                raise InvalidInput(
                    f"{shown(source)} is neither an absolute path nor a hub id, ORGANISATION/NAME - at `$.source`"
                )
            return source
        path = Path(source)
        allowed = path.is_absolute() and ".." not in path.parts and "\0" not in source
        resolved = path.resolve() if allowed else path
        if not allowed or not any(resolved.is_relative_to(root) for root in self._roots):
            raise InvalidInput(
                "a directory must be given by its absolute path under models_dir or one of source_roots "
                f"({len(self._roots)} directories in all), without '..' - at `$.source`"
            )
        return str(resolved)
