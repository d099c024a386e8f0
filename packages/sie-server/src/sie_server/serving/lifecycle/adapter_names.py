"""The adapters that requests may name: from a model's catalog entry, from `--adapter`, and from admin callers."""

from __future__ import annotations

from collections.abc import Mapping

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.storage.source import same_place
from sie_server.errors import AdapterNotFound, Conflict, shown
from sie_server.serving.lifecycle.slots import AttachedAdapter, Slot
from sie_server.wire import AdapterInfo


class AdapterNames:
    """The adapter names of all models, and the source of each."""

    def __init__(self, configured: Mapping[str, Mapping[str, str]]) -> None:
        """`configured`: model → adapter → source, from the operator's configuration."""
        self._configured = configured

    def sources(self, slot: Slot, config: ModelConfig | None = None) -> dict[str, str]:
        """Return name → source of every adapter of a model; `config` is that of another version of it."""
        entry = (config or slot.config).entry
        return {**(entry.adapters if entry else {}), **self._configured.get(slot.name, {}), **slot.adapters}

    def infos(self, slot: Slot) -> list[AdapterInfo]:
        """Describe the adapters of a model for `GET /v1/models`."""
        attached = slot.serving.attached if slot.serving else {}
        sources = {name: source for name, (source, _) in slot.fetching.items()} | self.sources(slot)
        return [_info(slot, name, source, attached.get(name)) for name, source in sorted(sources.items())]

    def check(self, slot: Slot, name: str, config: ModelConfig | None = None) -> str:
        """Return the source of an adapter.

        Raises:
            AdapterNotFound: with the names that look similar.
        """
        sources = self.sources(slot, config)
        if name not in sources:
            known = f"; it has {', '.join(sorted(sources))}" if sources else " and no other adapter"
            raise AdapterNotFound(
                f"model {slot.name!r} has no adapter {shown(name)}{suggest(name, list(sources)) or known}"
            )
        return sources[name]

    def check_source(self, slot: Slot, name: str, source: str) -> bool:
        """Return whether the name is known, with this source.

        Raises:
            Conflict: the name has another source; the message has the next step.
        """
        before = self.sources(slot).get(name)
        if before is not None and not same_place(before, source):
            hint = "unload it first"
            if name not in slot.adapters:
                hint = (
                    "the configuration (--adapter, or `adapters` of its YAML file) says so, and unloading does not "
                    "change it: load the other adapter under another name, or change the configuration"
                )
            raise Conflict(f"adapter {name!r} of {slot.name!r} is from {before!r}; {hint}")
        return before is not None


def _info(slot: Slot, name: str, source: str, attached: AttachedAdapter | None) -> AdapterInfo:
    if attached and attached.source != source:  # it is replaced by the next request
        attached = None
    progress = attached.progress if attached else None
    if progress is None and name in slot.fetching:
        progress = slot.fetching[name][1]
    loaded = attached is not None and attached.adapter is not None
    return AdapterInfo(name, source, loaded, progress.wire() if progress else None)
