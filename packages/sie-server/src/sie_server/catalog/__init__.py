"""The models the server knows: one YAML file each in this directory, what `--model` names, and `--models-dir`.

Knowing a model costs nothing; it is fetched and loaded on first use. Ids that are not known here are never fetched,
so a remote caller cannot make the server download anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from sie_server.catalog.adapters import configured_adapters
from sie_server.catalog.directory import ModelsDirectory, read_entry, stamp_of
from sie_server.catalog.entries import (
    EMBEDDED,
    CatalogEntry,
    ModelConfig,
    id_problem,
    models_of,
    profile_names,
)
from sie_server.config import ConfigError

__all__ = [
    "EMBEDDED",
    "CatalogEntry",
    "ModelConfig",
    "ModelsDirectory",
    "catalog",
    "configured_adapters",
    "id_problem",
    "known_models",
    "profile_names",
    "stamp_of",
    "with_configured",
]
MODELS = Path(__file__).parent / "models"


def known_models(
    configured: Iterable[str], models_dir: str | None, *, report: bool = True
) -> dict[str, ModelConfig]:
    """Every id the server answers to; `configured` are values of `--model`, loaded at start.

    What is ignored in the models directory is logged, unless somebody else is going to `report` it.

    Raises:
        ConfigError: an id that is neither in the catalog nor has a source, or an unreadable models directory.
    """
    try:
        found = ModelsDirectory(models_dir, report=report).scan() if models_dir else {}
    except OSError as error:
        raise ConfigError(f"--models-dir {models_dir}: {error.strerror or error}") from None
    return with_configured(configured, found)


def with_configured(
    configured: Iterable[str], found: Mapping[str, ModelConfig], first: Iterable[str] = ()
) -> dict[str, ModelConfig]:
    """The same with what was `found` in the models directory now, and the ids of what was there `first`, at the start.

    Those ids are the directory's for good: one that has left it is unknown. It never comes to mean weights from
    elsewhere, the catalog's of that id or those of a hub id that sounds the same.
    """
    known, gone = {**catalog(), **found}, set(first) - set(found)
    models = {name: model for name, model in known.items() if name not in gone}
    for value in configured:
        name, separator, source = value.partition("=")
        if not name or (separator and not source):
            raise ConfigError(f"--model {value!r}: expected ID, ID=DIRECTORY or ID=HUB_ID")
        if separator:
            # a known id keeps its limits, template, prompts and profiles wherever its weights come from
            as_known = known.get(name, ModelConfig(name, source))
            models[name] = replace(as_known, source=source, revision=None, preload=True)
        elif name not in gone:
            # an operator may name any hub id; only ids in callers' requests must be known already
            models[name] = replace(models.get(name, ModelConfig(name, name)), preload=True)
    return models


def catalog() -> dict[str, ModelConfig]:
    """The models of this package's YAML files, under their ids and aliases."""
    return {model.id: model for model in _packaged()}


@cache  # the models directory is looked at every few seconds, and these files do not change
def _packaged() -> tuple[ModelConfig, ...]:
    return tuple(model for path in sorted(MODELS.glob("*.yaml")) for model in models_of(read_entry(path)))
