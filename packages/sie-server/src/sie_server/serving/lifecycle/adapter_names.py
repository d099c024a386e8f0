"""Which adapters a model may be asked for, by name: from its catalog entry, from `--adapter`, from admin callers."""

from __future__ import annotations

from collections.abc import Mapping

from sie_server.catalog import ModelConfig
from sie_server.config import suggest
from sie_server.engine.storage.source import same_place
from sie_server.errors import AdapterNotFound, Conflict
from sie_server.serving.lifecycle.slots import Slot
from sie_server.wire import AdapterInfo


class AdapterNames:
    """The names of all models' adapters, and what each means."""

    def __init__(self, configured: Mapping[str, Mapping[str, str]]) -> None:
        """`configured`: model → adapter → source, as the operator said at start."""
        self._configured = configured

    def sources(self, slot: Slot, config: ModelConfig | None = None) -> dict[str, str]:
        """Name → source of every adapter that a model may be asked for; `config` is that of another version."""
        entry = (config or slot.config).entry
        return {**(entry.adapters if entry else {}), **self._configured.get(slot.name, {}), **slot.adapters}

    def infos(self, slot: Slot) -> list[AdapterInfo]:
        """For `GET /v1/models`."""
        attached = slot.serving.attached if slot.serving else {}
        return [
            AdapterInfo(
                name,
                source,
                name in attached and attached[name].adapter is not None and attached[name].source == source,
            )
            for name, source in sorted(self.sources(slot).items())
        ]

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

    def check_source(self, slot: Slot, name: str, source: str) -> bool:
        """True when the name is known, and from there.

        Raises:
            Conflict: it is from elsewhere, with what would help.
        """
        before = self.sources(slot).get(name)
        if before is not None and not same_place(before, source):
            hint = "unload it first"
            if name not in slot.adapters:
                hint = (
                    "that was configured (--adapter, or `adapters` of its YAML file), and unloading does not change "
                    "it: load the other one under another name, or change the configuration"
                )
            raise Conflict(f"adapter {name!r} of {slot.name!r} is from {before!r}; {hint}")
        return before is not None
