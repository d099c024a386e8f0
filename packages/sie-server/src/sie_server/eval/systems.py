"""The values of `--model`: a model with an adapter and a profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sie_server.catalog import known_models
from sie_server.errors import shown
from sie_server.eval.first_stage import ENCODE
from sie_server.offline.errors import OfflineError


@dataclass(frozen=True)
class System:
    """A model as it is compared with others."""

    name: str  # in tables: ID[:ADAPTER][@PROFILE] or encode:ID[:ADAPTER]
    model: str  # in requests: ID[:ADAPTER]
    options: dict[str, Any]  # of requests
    configured: str  # the value of `--model` of a server that has it: ID or ID=SOURCE
    dense: bool = False  # ranks by the cosine of its vectors, whether it scores or not


def parse_system(value: str, known: Iterable[str] = ()) -> System:
    """Read `[encode:]ID[:ADAPTER][@PROFILE][=SOURCE]`. `known` ids may contain `:` and `@`.

    Raises:
        OfflineError: a part is empty, or a model of vectors has a profile.
    """
    known = set(known)
    if value.startswith(ENCODE) and value.partition("=")[0] not in known:
        found = parse_system(value.removeprefix(ENCODE), known)
        if found.options or found.dense:
            raise OfflineError(
                f"--model {shown(value)}: vectors have no profiles here; expected encode:ID or encode:ID:ADAPTER"
            )
        return replace(found, name=f"{ENCODE}{found.name}", dense=True)
    name, separator, source = value.partition("=")
    model, at, profile = (name, "", "") if name in known else name.rpartition("@")
    if not at:
        model = name
    base, colon, adapter = (model, "", "") if model in known else model.rpartition(":")
    if not colon:
        base = model
    if not base or (at and not profile) or (colon and not adapter) or (separator and not source):
        raise OfflineError(
            f"--model {shown(value)}: expected ID, ID:ADAPTER, ID@PROFILE or encode:ID, or one of them "
            "with =SOURCE"
        )
    options = {"profile": profile} if at else {}
    return System(name, model, options, f"{base}={source}" if source else base)


def configured(values: Iterable[str]) -> tuple[str, ...]:
    """Return the values of `--model` of a server that has all systems: ID, or ID=SOURCE if any system names a source.

    Raises:
        OfflineError: a model has two sources.
    """
    sources: dict[str, str] = {}
    for value in values:
        name, _, source = value.partition("=")
        known = sources.setdefault(name, source)
        if source and known and source != known:
            raise OfflineError(
                f"--model {shown(name)} has two sources, {shown(known)} and {shown(source)}; give them different ids"
            )
        sources[name] = known or source
    return tuple(f"{name}={source}" if source else name for name, source in sources.items())


def parse_systems(values: Iterable[str], models_dir: str | None = None) -> list[System]:
    """Read several values. Raises OfflineError, also if two name the same system."""
    known = known_models((), models_dir, report=False)
    systems = [parse_system(value, known) for value in values]
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise OfflineError(f"--model {shown(name)} is given twice; remove one of them")
    return systems
