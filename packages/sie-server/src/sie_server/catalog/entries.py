"""Catalog entries, as YAML files have them, and the models made from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from sie_server.catalog.calibration import Calibration
from sie_server.catalog.revisions import split_revision
from sie_server.catalog.stages import CascadeEntry, Stage
from sie_server.config import NAME_LENGTH
from sie_server.templates.pair_settings import Truncation
from sie_server.wire import AdapterName, Profile

OTHER_SCORES = ("score_mode", "score_weights", "cutoff_layer")  # options that choose another raw score
EMBEDDED = Path(__file__).parent.parent / "embedded"


class CatalogEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of a YAML file; one of the models directory may leave some to the catalog (`read_entry`)."""

    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[
        str, Meta(min_length=1, description="Hub id, or `embedded:NAME` for weights in this package")
    ]
    license: str | None = None
    description: str | None = None
    outputs: Annotated[list[str], Meta(min_length=1)] = []  # empty: known when the model is loaded
    max_seq_length: Annotated[int, Meta(ge=8, le=2**24)] | None = None  # None: that of the checkpoint
    revision: str | None = None
    package: Annotated[
        str | None,
        Meta(description="PACKAGE/FOLDER: a checkpoint in an installed Python package, preferred to the hub"),
    ] = None
    dims: dict[str, Annotated[int, Meta(ge=1, le=2**24)]] = {}
    aliases: tuple[str, ...] = ()
    compat: bool = False  # requires the extra `compat`
    template: Annotated[
        str | None,
        Meta(description="Name of the prompt template of a causal reranker (sie_server/templates/forms)"),
    ] = None
    truncation: Annotated[
        Truncation | None,
        Meta(
            description="How a cross-encoder cuts a pair that is too long: `longest-first` as sentence-transformers, "
            "`query-first` as FlagEmbedding"
        ),
    ] = None
    label: Annotated[
        str | int | None,
        Meta(description="Name or number of the label that a classifier of several labels scores"),
    ] = None
    profiles: Annotated[
        dict[str, Profile],
        Meta(description="Name → options of a request; `default` applies to requests without a profile"),
    ] = {}
    adapters: Annotated[
        dict[AdapterName, str],
        Meta(description="Name → directory or hub id of the model's LoRA adapters"),
    ] = {}
    calibration: Annotated[
        Calibration | None, Meta(description="Raw scores → probabilities, for `normalize: calibrated`")
    ] = None
    prompts: Annotated[
        dict[Literal["query", "document"], str],
        Meta(description="Prompts from the model card, for checkpoints whose files do not have them"),
    ] = {}


@dataclass(frozen=True)
class ModelConfig:
    """A model that requests can name. `entry` is its catalog entry, if it has one."""

    id: str
    source: str
    revision: str | None = None
    max_seq_length: int | None = None
    entry: CatalogEntry | None = None
    preload: bool = False
    template: str | None = None
    label: str | int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    truncation: Truncation | None = None
    stamp: str | None = None  # changes with the files of a watched directory
    aliases: tuple[str, ...] = ()  # other names of the same model, unless a model has the name as its id
    cascade: CascadeEntry | None = None  # it has no source and no weights, only stages
    problem: str | None = None  # why the cascade cannot work

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of a cascade; a model has none."""
        return self.cascade.stages if self.cascade else ()

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The named sets of options from the catalog entry."""
        entry = self.cascade or self.entry
        return entry.profiles if entry else {}

    @property
    def calibration(self) -> Calibration | None:
        """The calibration from the catalog entry."""
        return self.entry.calibration if self.entry else None

    @property
    def weights(self) -> tuple[object, ...]:
        """The fields that affect how the weights are loaded; all others may change while the model serves."""
        read = self.template, self.label, self.prompts, self.truncation, self.max_seq_length
        return self.source, self.revision, self.stamp, *read

    @property
    def shown_source(self) -> str:
        """The source as shown to users; embedded weights appear as `embedded:NAME`, without this package's path."""
        path = Path(self.source)
        return f"embedded:{path.name}" if path.parent == EMBEDDED else self.source


def id_problem(name: str) -> str | None:
    """Return the problem of a model id as words that follow the id, or None if the id is valid."""
    if len(name) > NAME_LENGTH:
        return f"is longer than {NAME_LENGTH} characters"
    if not re.fullmatch(r"[\w./ @+-]+", name):
        return "has characters other than letters, digits, space and ._-/@+"
    if any(part.strip() in ("", ".", "..") for part in name.split("/")):
        return "has a part that is empty or consists of dots; expected NAME or ORGANISATION/NAME"
    return None


def plain_calibration(model: ModelConfig) -> Calibration | None:
    """Return the calibration of a model if it applies to requests without options; None: it does not.

    That of weights in this package does not apply to others under their id.
    """
    entry = model.entry
    if entry and entry.source.startswith("embedded:") and model.shown_source != entry.source:
        return None
    found, default = model.calibration, model.profiles.get("default")
    changed = default is not None and any(getattr(default, name) is not None for name in OTHER_SCORES)
    return found if found and not found.options and not changed else None


def profile_names(profiles: Mapping[str, Profile]) -> list[str]:
    """Return the values of `options.profile`; every model has a `default`."""
    return ["default", *sorted(set(profiles) - {"default"})]


def model_of(entry: CatalogEntry | CascadeEntry, root: Path | None = None) -> ModelConfig:
    """Return the model of an entry. Directories may be relative to `root`."""
    if isinstance(entry, CascadeEntry):
        return ModelConfig(entry.id, source="", aliases=_others(entry), cascade=entry)
    source = _installed(entry.package) or entry.source
    if source.startswith("embedded:"):
        source = str(EMBEDDED / source.removeprefix("embedded:"))
    elif root:
        source = _resolve(root, source)
    source, revision = split_revision(source)
    if revision and entry.revision and revision != entry.revision:
        raise ValueError(
            f"`source` names the revision {revision!r}, and `revision` {entry.revision!r}; keep one"
        )
    if root:
        entry = replace(entry, adapters={name: _resolve(root, at) for name, at in entry.adapters.items()})
    return ModelConfig(
        entry.id,
        source,
        revision or entry.revision,
        entry.max_seq_length,
        entry,
        template=entry.template,
        label=entry.label,
        prompts=dict[str, str](entry.prompts.items()),
        truncation=entry.truncation,
        aliases=_others(entry),
    )


def _others(entry: CatalogEntry | CascadeEntry) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in entry.aliases if name != entry.id))


def id_of(name: str, models: Mapping[str, ModelConfig]) -> str:
    """Return the id of the model that has `name` as its id or alias; any other name unchanged."""
    if name in models:
        return name
    return next((model.id for model in models.values() if name in model.aliases), name)


def _resolve(root: Path, source: str) -> str:
    """Resolve a directory relative to `root`; return any other source unchanged."""
    relative = source.startswith(("./", "../")) or (root / source).is_dir()
    return str(root / source) if relative else source


def _installed(package: str | None) -> str | None:
    """Return the folder of a checkpoint in a Python package. The package is located, never imported."""
    name, _, folder = (package or "").partition("/")
    top, *inner = name.split(".")  # find_spec("a.b") would import a
    found = find_spec(top) if top else None
    if found is None or found.origin is None:
        return None
    directory = Path(found.origin).parent.joinpath(*inner, folder)
    return str(directory) if (directory / "config.json").exists() else None
