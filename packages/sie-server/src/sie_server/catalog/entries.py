"""What a catalog file says, and the model it makes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from sie_server.wire import AdapterName, Profile

EMBEDDED = Path(__file__).parent.parent / "embedded"
ID_LENGTH = 200


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
        str | None,
        Meta(description="Name of the form a causal reranker is asked in (sie_server/templates/forms)"),
    ] = None
    profiles: Annotated[
        dict[str, Profile],
        Meta(description="Name → options of a request; `default` holds for requests that name none"),
    ] = {}
    adapters: Annotated[
        dict[AdapterName, str],
        Meta(description="Name → directory or hub id of LoRA adapters that it may be asked for"),
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
    stamp: str | None = None  # changes when the files of a watched directory do

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The options its catalog entry gives names to."""
        return self.entry.profiles if self.entry else {}

    @property
    def weights(self) -> tuple[object, ...]:
        """All that decides how its weights are loaded; everything else may change while they serve."""
        return self.source, self.revision, self.stamp, self.template, self.prompts, self.max_seq_length

    @property
    def shown_source(self) -> str:
        """The source as users know it: where this package lies is of no use to them."""
        path = Path(self.source)
        return f"embedded:{path.name}" if path.parent == EMBEDDED else self.source


def id_problem(name: str) -> str | None:
    """What is wrong with a model id, in words that follow it; None when it is a good one."""
    if len(name) > ID_LENGTH:
        return f"is longer than {ID_LENGTH} characters"
    if not re.fullmatch(r"[\w./ @+-]+", name):
        return "has characters other than letters, digits, space and ._-/@+"
    if any(part.strip() in ("", ".", "..") for part in name.split("/")):
        return "has an empty part or one of dots; expected NAME or ORGANISATION/NAME"
    return None


def profile_names(profiles: Mapping[str, Profile]) -> list[str]:
    """Return the values of `options.profile`; every model has a `default`."""
    return ["default", *sorted(set(profiles) - {"default"})]


def models_of(entry: CatalogEntry, root: Path | None = None) -> Iterator[ModelConfig]:
    """The models of one entry: its id and its aliases; directories may be given relative to `root`."""
    source = _installed(entry.package) or entry.source
    if source.startswith("embedded:"):
        source = str(EMBEDDED / source.removeprefix("embedded:"))
    elif root:
        source = _under(root, source)
    if root:
        entry = replace(entry, adapters={name: _under(root, at) for name, at in entry.adapters.items()})
    for name in (entry.id, *entry.aliases):
        yield ModelConfig(
            name,
            source,
            entry.revision,
            entry.max_seq_length,
            entry,
            template=entry.template,
            prompts=dict[str, str](entry.prompts.items()),
        )


def _under(root: Path, source: str) -> str:
    """A directory that is given relative to `root`; anything else stays as it is."""
    relative = source.startswith(("./", "../")) or (root / source).is_dir()
    return str(root / source) if relative else source


def _installed(package: str | None) -> str | None:
    """The folder of a checkpoint that came as a Python package; the package is looked for, never imported."""
    name, _, folder = (package or "").partition("/")
    top, *inner = name.split(".")  # looking for a.b would import a
    found = find_spec(top) if top else None
    if found is None or found.origin is None:
        return None
    directory = Path(found.origin).parent.joinpath(*inner, folder)
    return str(directory) if (directory / "config.json").exists() else None
