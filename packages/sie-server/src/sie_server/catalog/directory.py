"""The current models of `--models-dir`: subdirectories with checkpoints, and `*.yaml` files in the catalog's format."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import yaml

from sie_server.catalog.contents import instead_of_config
from sie_server.catalog.entries import CatalogEntry, ModelConfig, id_problem, model_of
from sie_server.catalog.stages import CascadeEntry
from sie_server.config import ConfigError
from sie_server.files import ENTRIES, JSON_BYTES, check_regular, entries, expanded, read_yaml

CONFIG = "config.json"
MODELS = Path(__file__).parent / "models"
log = logging.getLogger("sie_server.catalog")


class ModelsDirectory:
    """The models directory. An invalid file is reported once, and its last valid content stays in effect.

    So do models that can no longer be read, for example because their volume is not mounted: only an entry that is gone
    from a directory that can be read is a removed model.
    """

    def __init__(self, models_dir: str, *, report: bool = True) -> None:
        """Raise ConfigError if the directory does not exist. `report`: log ignored files."""
        self._root = expanded(models_dir)
        if not self._root.is_dir():
            raise ConfigError(f"--models-dir {models_dir}: no such directory")
        self._report = report
        self._files: dict[Path, CatalogFile] = {}
        self._known: dict[str, ModelConfig] = {}  # by the last scan
        self._lost: set[str] = set()  # folders that this scan could not read
        self._identities: dict[Path, tuple[int, int]] = {}  # of folders that had entries
        self.problems: dict[str, str] = {}  # file or directory → problem
        self.unusable: dict[str, str] = {}  # id or alias that only an ignored file has → file and problem

    def scan(self) -> dict[str, ModelConfig]:
        """Scan the directory and return its models by id.

        Raises:
            OSError: the directory cannot be read, has too many entries, or is empty because its volume is gone.
        """
        found = self._names(self._root)
        self._lost.clear()
        models: dict[str, ModelConfig] = {}
        problems: dict[str, str] = {}
        for name in self._checkpoints(found, problems):
            problem = f"the id {name!r} {wrong}" if (wrong := id_problem(name)) else None
            try:
                directory = self._root / name
                if problem := problem or file_problem(directory / CONFIG):
                    raise OSError(problem)
                models[name] = ModelConfig(name, str(directory), stamp=stamp_of(directory))
            except OSError as error:
                problems[name] = str(error)
                self._lost.add(name)
        paths = [self._root / name for name in found if name.endswith(".yaml")]
        self._files = {path: self._files.get(path, CatalogFile()) for path in paths}
        problems |= {path.name: problem for path in paths if (problem := self._read(path, models))}
        folders = {
            name: config for name, config in self._known.items() if not config.entry and not config.cascade
        }
        kept = {name: config for name, config in folders.items() if _within(name, self._lost)}
        models = kept | models
        self._log(problems, kept)
        self.unusable = {
            name: f"{path}: {problems[path.name]}"
            for path, file in self._files.items()
            if path.name in problems
            for name in file.names
            if name not in models
        }
        self.problems, self._known = problems, dict(models)
        return models

    def refuse_unusable(self, configured: Iterable[str]) -> None:
        """Refuse ids, values of `--model` without a source, that only an ignored file of the last scan has.

        Without the file such an id would be that of a hub repository, with other weights.

        Raises:
            ConfigError: with the file and its problem.
        """
        for value in configured:
            if value in self.unusable:
                raise ConfigError(f"--model {value!r}: {self.unusable[value]}")

    def _log(self, problems: dict[str, str], kept: dict[str, ModelConfig]) -> None:
        """Report the problems that the last scan did not have."""
        for name, problem in problems.items():
            if self._report and self.problems.get(name) != problem:
                shown = str(self._root / name)
                effect = "stays as it was" if any(_within(one, {name}) for one in kept) else "is ignored"
                # a name may hold line breaks
                log.warning("%s %s: %s", shown if shown.isprintable() else repr(shown), effect, problem)

    def _names(self, folder: Path) -> list[str]:
        """Return the visible entries of a folder, sorted.

        Raises:
            OSError: the folder cannot be read, or it is empty and not the one that had entries in an earlier scan.
        """
        names = sorted(entry.name for entry in entries(folder) if not entry.name.startswith("."))
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        if names:
            self._identities[folder] = identity
        elif self._identities.get(folder, identity) != identity:
            raise OSError(f"{folder} is another folder than before, and empty: is its volume mounted?")
        return names

    def _read(self, path: Path, models: dict[str, ModelConfig]) -> str | None:
        """Add a file's models to `models` and return the file's problem, if it has one."""
        file = self._files[path]
        file.read(path)
        problem = file.problem
        try:
            if file.entry is None:
                return problem
            model = model_of(file.entry, self._root)
            if file.adds and model.id in models:
                model = replace(model, source=models[model.id].source, revision=None)
            if not model.cascade:
                model = replace(model, stamp=stamp_of(Path(model.source)))
            known = self._known.get(model.id)
            if model.stamp is None and known and known.stamp and known.source == model.source:
                raise OSError(f"its source {model.source} does not exist")
        except (OSError, ValueError, ConfigError) as error:
            if file.entry and file.entry.id in self._known:
                models[file.entry.id] = self._known[file.entry.id]
            return str(error)
        filed = [other for other in models.values() if other.entry or other.cascade]
        others = {name for other in filed for name in (other.id, *other.aliases)}
        if taken := others.intersection((model.id, *model.aliases)):
            return f"another file has the id {min(taken)!r}"
        models[model.id] = model
        return problem

    def _checkpoints(self, names: list[str], problems: dict[str, str]) -> Iterator[str]:
        """Yield `name` and `org/name` of directories that have a config.json, sorted.

        A module's folder inside a checkpoint (1_Pooling/config.json) is not a model.
        """
        for name in names:
            inside = self._inside(name, problems)
            if CONFIG in inside:
                yield name
                continue
            found = [part for part in inside if CONFIG in self._inside(f"{name}/{part}", problems)]
            if "modules.json" in inside or (inside and not found):
                problems.setdefault(name, f"{CONFIG} is missing; {instead_of_config(self._root / name)}")
                continue
            yield from (f"{name}/{part}" for part in found)

    def _inside(self, name: str, problems: dict[str, str]) -> list[str]:
        """Return the visible entries of a folder; none of a file, or of one that is lost."""
        folder = self._root / name
        try:
            if folder.is_dir():
                return self._names(folder)
            if not folder.is_symlink() or folder.exists():
                return []
            problems[name] = "it is a link to a folder that does not exist"
        except OSError as error:
            problems[name] = str(error)
        self._lost.add(name)
        return []


def _within(name: str, folders: Container[str]) -> bool:
    """Return whether a model `name` or `org/name` is one of `folders` or in one of them."""
    return name in folders or name.partition("/")[0] in folders


@cache  # the directory is scanned every few seconds, and these files do not change
def packaged() -> Mapping[str, ModelConfig]:
    """Return the models of this package's YAML files by id."""
    models = [model_of(read_entry(path)) for path in sorted(MODELS.glob("*.yaml"))]
    return MappingProxyType({model.id: model for model in models})


class CatalogFile:
    """A YAML file: its last valid entry, and its problem. It is read again only if the file has changed."""

    def __init__(self) -> None:
        self.entry: CatalogEntry | CascadeEntry | None = None
        self.problem: str | None = None
        self.names: tuple[str, ...] = ()  # the id and aliases, as far as they can be read
        self.adds = False  # to the catalog's entry, so its weights are those of the id
        self._seen: tuple[int, ...] = ()

    def read(self, path: Path) -> None:
        """Read the file if it has changed since the last call."""
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == self._seen:
                return
            self._seen, self.problem, self.names = seen, None, ()
            content = read_yaml(path)
            self.names = _names_in(content)
            self.entry = entry_of(completed(content, packaged()))
            self.adds = "source" not in content and "stages" not in content
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.problem = " ".join(str(error).split())
        except RecursionError:
            self.problem = "the file is nested too deeply"
        except Exception as error:  # the YAML reader raises more than its own errors
            reason = " ".join(str(error).split())
            self.problem = f"the file cannot be read: {type(error).__name__}: {reason}"


def read_entry(path: Path) -> CatalogEntry | CascadeEntry:
    """Read one catalog file. With `stages` it is that of a cascade.

    Raises:
        OSError, ValueError, yaml.YAMLError: with the problem.
    """
    return entry_of(read_yaml(path))


def entry_of(content: Any) -> CatalogEntry | CascadeEntry:
    """Return the entry that a file contains. Raises ValueError with its problem."""
    entry: CatalogEntry | CascadeEntry
    if isinstance(content, dict) and "stages" in content:
        entry = msgspec.convert(content, CascadeEntry)
    else:
        entry = msgspec.convert(content, CatalogEntry)
    for name in (entry.id, *entry.aliases):
        if problem := id_problem(name):
            raise ValueError(f"the id {name!r} {problem}")
    return entry


def _names_in(content: Any) -> tuple[str, ...]:
    """Return the id and the aliases in a file's content, which may be anything."""
    if not isinstance(content, dict):
        return ()
    aliases = content.get("aliases")
    found = (content.get("id"), *(aliases if isinstance(aliases, list) else ()))
    return tuple(name for name in found if isinstance(name, str))


def completed(content: Any, known: Mapping[str, ModelConfig]) -> Any:
    """Return the content of a file; without a `source`, with the fields that `known` has for its id.

    Aliases, and names in tables such as `profiles`, are added to the known ones.
    """
    name = content.get("id") if isinstance(content, dict) and "source" not in content else None
    model = known.get(name) if isinstance(name, str) else None
    if model is None or model.entry is None:
        return content
    inherited = msgspec.to_builtins(model.entry)
    return inherited | {field: _added(field, inherited.get(field), given) for field, given in content.items()}


def _added(field: str, known: Any, given: Any) -> Any:
    """Return the value of a field that a file has and that the catalog may have, too."""
    if field == "aliases" and isinstance(given, list):
        return [*known, *given]
    tables = isinstance(known, dict) and isinstance(given, dict)
    return known | given if tables and field != "calibration" else given  # a calibration is one curve


def file_problem(path: Path) -> str | None:
    """Return why a configuration file cannot be read, from its type and size; None: it can."""
    try:
        check_regular(path, JSON_BYTES)
    except OSError as error:
        return error.strerror or str(error)
    return None


def stamp_of(directory: Path) -> str | None:
    """Return a string that changes with a checkpoint's files; None if the path is not a directory, such as a hub id.

    Raises:
        OSError: the directory is unreadable or has too many entries.
    """
    if not directory.is_dir():
        return None
    stats: list[str] = []
    left = ENTRIES
    folders = [directory]
    while folders:
        folder = folders.pop()
        for entry in entries(folder, left):
            left -= 1
            if folder == directory and entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.is_file():
                status = entry.stat()
                name = Path(entry.path).relative_to(directory)
                stats.append(f"{name}:{status.st_mtime_ns}:{status.st_size}")
    return ";".join(sorted(stats))
