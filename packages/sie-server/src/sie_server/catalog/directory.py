"""The current models of `--models-dir`: subdirectories with checkpoints, and `*.yaml` files in the catalog's format."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import yaml

from sie_server.catalog.contents import instead_of_config
from sie_server.catalog.entries import CatalogEntry, ModelConfig, id_problem, model_of
from sie_server.config import ConfigError
from sie_server.files import ENTRIES, JSON_BYTES, check_regular, entries, expanded, read_yaml

log = logging.getLogger("sie_server.catalog")


class ModelsDirectory:
    """The models directory. An invalid file is reported once, and its last valid content stays in effect."""

    def __init__(self, models_dir: str, *, report: bool = True) -> None:
        """Raise ConfigError if the directory does not exist. `report`: log ignored files."""
        self._root = expanded(models_dir)
        if not self._root.is_dir():
            raise ConfigError(f"--models-dir {models_dir}: no such directory")
        self._report = report
        self._files: dict[Path, CatalogFile] = {}
        self.problems: dict[str, str] = {}  # file or directory → problem

    def scan(self) -> dict[str, ModelConfig]:
        """Scan the directory and return its models by id.

        Raises:
            OSError: the directory cannot be read, or has too many entries.
        """
        found = [entry.name for entry in entries(self._root) if not entry.name.startswith(".")]
        models: dict[str, ModelConfig] = {}
        problems: dict[str, str] = {}
        for name in self._checkpoints(sorted(found), problems):
            problem = f"the id {name!r} {wrong}" if (wrong := id_problem(name)) else None
            if problem := problem or file_problem(self._root / name / "config.json"):
                problems[name] = problem
                continue
            try:
                directory = self._root / name
                models[name] = ModelConfig(name, str(directory), stamp=stamp_of(directory))
            except OSError as error:
                problems[name] = str(error)
        paths = [self._root / name for name in sorted(found) if name.endswith(".yaml")]
        self._files = {path: self._files.get(path, CatalogFile()) for path in paths}
        problems |= {path.name: problem for path in paths if (problem := self._read(path, models))}
        for name, problem in problems.items():
            if self._report and self.problems.get(name) != problem:
                shown = str(self._root / name)
                # a name may hold line breaks
                log.warning("%s is ignored: %s", shown if shown.isprintable() else repr(shown), problem)
        self.problems = problems
        return models

    def _read(self, path: Path, models: dict[str, ModelConfig]) -> str | None:
        """Add a file's models to `models` and return the file's problem, if it has one."""
        file = self._files[path]
        file.read(path)
        problem = file.problem
        try:
            if file.entry is None:
                return problem
            model = model_of(file.entry, self._root)
            model = replace(model, stamp=stamp_of(Path(model.source)))
        except OSError as error:
            return str(error)
        others = {name for other in models.values() if other.entry for name in (other.id, *other.aliases)}
        if taken := others.intersection((model.id, *model.aliases)):
            return f"another file has the id {min(taken)!r}"
        models[model.id] = model
        return problem

    def _checkpoints(self, names: list[str], problems: dict[str, str]) -> Iterator[str]:
        """Yield `name` and `org/name` of directories that have a config.json, sorted.

        A module's folder inside a checkpoint (1_Pooling/config.json) is not a model.
        """
        for name in names:
            directory = self._root / name
            try:
                if not directory.is_dir():
                    continue
                if (directory / "config.json").exists():
                    yield name
                    continue
                inner = sorted(entry.name for entry in entries(directory) if not entry.name.startswith("."))
                found = [part for part in inner if (directory / part / "config.json").exists()]
                if (directory / "modules.json").exists() or (inner and not found):
                    problems[name] = f"config.json is missing; {instead_of_config(directory)}"
                    continue
                yield from (f"{name}/{part}" for part in found)
            except OSError as error:
                problems[name] = str(error)


class CatalogFile:
    """A YAML file: its last valid entry, and its problem. It is read again only if the file has changed."""

    def __init__(self) -> None:
        self.entry: CatalogEntry | None = None
        self.problem: str | None = None
        self._seen: tuple[int, ...] = ()

    def read(self, path: Path) -> None:
        """Read the file if it has changed since the last call."""
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen == self._seen:
                return
            self._seen, self.problem = seen, None
            self.entry = read_entry(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.problem = " ".join(str(error).split())
        except RecursionError:
            self.problem = "the file is nested too deeply"
        except Exception as error:  # the YAML reader raises more than its own errors
            reason = " ".join(str(error).split())
            self.problem = f"the file cannot be read: {type(error).__name__}: {reason}"


def read_entry(path: Path) -> CatalogEntry:
    """Read one catalog file.

    Raises:
        OSError, ValueError, yaml.YAMLError: with the problem.
    """
    entry = msgspec.convert(read_yaml(path), CatalogEntry)
    for name in (entry.id, *entry.aliases):
        if problem := id_problem(name):
            raise ValueError(f"the id {name!r} {problem}")
    return entry


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
