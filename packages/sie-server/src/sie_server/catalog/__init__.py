"""The models the server knows: one YAML file each in this directory, what `--model` names, and `--models-dir`.

Knowing a model costs nothing; it is fetched and loaded on first use. Ids that are not known here are never fetched,
so a remote caller cannot make the server download anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from msgspec import Meta, Struct

from sie_server.config import ConfigError
from sie_server.wire import Profile

HERE = Path(__file__).parent
EMBEDDED = HERE.parent / "embedded"


class CatalogEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One YAML file."""

    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[
        str, Meta(min_length=1, description="Hub id, or `embedded:NAME` for weights in this package")
    ]
    license: str
    description: str
    outputs: Annotated[list[str], Meta(min_length=1)]
    max_seq_length: Annotated[int, Meta(ge=8)]
    revision: str | None = None
    package: Annotated[
        str | None,
        Meta(
            description="PACKAGE/FOLDER: the checkpoint in an installed Python package, used before the hub"
        ),
    ] = None
    dims: dict[str, int] = {}
    aliases: tuple[str, ...] = ()
    compat: bool = False  # needs the extra of that name
    template: Annotated[
        str | None, Meta(description="Name of the form a causal reranker is asked in (sie_server/templates)")
    ] = None
    profiles: Annotated[
        dict[str, Profile],
        Meta(description="Name → options of a request; `default` holds for requests that name none"),
    ] = {}
    prompts: Annotated[
        dict[Literal["query", "document"], str],
        Meta(description="What the model card puts before a text, for checkpoints whose files do not say it"),
    ] = {}


@dataclass(frozen=True)
class ModelConfig:
    """A model that can be asked for; `entry` is what the catalog says about it, if it is in there."""

    id: str
    source: str
    revision: str | None = None
    max_seq_length: int | None = None
    entry: CatalogEntry | None = None
    preload: bool = False
    template: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The options its catalog entry gives names to."""
        return self.entry.profiles if self.entry else {}


def known_models(configured: Iterable[str], models_dir: str | None) -> dict[str, ModelConfig]:
    """Every id the server answers to; `configured` are values of `--model`, loaded at start.

    Raises:
        ConfigError: an id that is neither in the catalog nor has a source, or an unreadable models directory.
    """
    models = catalog() | _directory_models(models_dir)
    for value in configured:
        name, separator, source = value.partition("=")
        if not name or (separator and not source):
            raise ConfigError(f"--model {value!r}: expected ID, ID=DIRECTORY or ID=HUB_ID")
        if separator:
            # a known id keeps its limits, template, prompts and profiles wherever its weights come from
            known = models.get(name, ModelConfig(name, source))
            models[name] = replace(known, source=source, revision=None, preload=True)
        else:
            # an operator may name any hub id; only ids in callers' requests must be known already
            models[name] = replace(models.get(name, ModelConfig(name, name)), preload=True)
    return models


def catalog() -> dict[str, ModelConfig]:
    """The models of this package's YAML files, under their ids and aliases."""
    models: dict[str, ModelConfig] = {}
    for path in sorted(HERE.glob("*.yaml")):
        entry = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), CatalogEntry)
        source = entry.source
        if source.startswith("embedded:"):
            source = str(EMBEDDED / source.removeprefix("embedded:"))
        source = _installed(entry.package) or source
        for name in (entry.id, *entry.aliases):
            models[name] = ModelConfig(
                name,
                source,
                entry.revision,
                entry.max_seq_length,
                entry,
                template=entry.template,
                prompts=dict[str, str](entry.prompts.items()),
            )
    return models


def _installed(package: str | None) -> str | None:
    """The folder of a checkpoint that came as a Python package; the package is looked for, never imported."""
    name, _, folder = (package or "").partition("/")
    found = find_spec(name) if name else None
    if found is None or found.origin is None:
        return None
    directory = Path(found.origin).parent / folder
    return str(directory) if (directory / "config.json").exists() else None


def _directory_models(models_dir: str | None) -> dict[str, ModelConfig]:
    """`DIR/name` and `DIR/org/name`, wherever there is a config.json."""
    if models_dir is None:
        return {}
    root = Path(models_dir).expanduser()
    if not root.is_dir():
        raise ConfigError(f"--models-dir {models_dir}: no such directory")
    found = sorted(c.parent for pattern in ("*/config.json", "*/*/config.json") for c in root.glob(pattern))
    # a module's folder inside a checkpoint (1_Pooling/config.json) is not a model
    tops = [d for d in found if not (d.parent / "config.json").exists() or d.parent == root]
    return {d.relative_to(root).as_posix(): ModelConfig(d.relative_to(root).as_posix(), str(d)) for d in tops}
