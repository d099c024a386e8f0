"""The current models of `--models-dir`: subdirectories with checkpoints, and `*.yaml` files in the catalog's format."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import yaml

from sie_server.catalog.entries import CatalogEntry, ModelConfig, id_problem, models_of
from sie_server.config import ConfigError

log = logging.getLogger("sie_server.catalog")


class ModelsDirectory:
    """The models directory. An invalid file is reported once, and its last valid content stays in effect."""

    def __init__(self, models_dir: str, *, report: bool = True) -> None:
        """Raise ConfigError if the directory does not exist. `report`: log ignored files."""
        self._root = Path(models_dir).expanduser()
        if not self._root.is_dir():
            raise ConfigError(f"--models-dir {models_dir}: no such directory")
        self._report = report
        self._files: dict[Path, list[ModelConfig]] = {}  # the last valid content
        self.problems: dict[str, str] = {}  # file or directory → problem

    def scan(self) -> dict[str, ModelConfig]:
        """Scan the directory and return its models by id.

        Raises:
            OSError: the directory cannot be read.
        """
        # unlike iterdir, a glob over a missing directory finds nothing and raises nothing
        next(self._root.iterdir(), None)
        models, problems = {}, {}
        for directory in self._checkpoints():
            name = directory.relative_to(self._root).as_posix()
            if problem := id_problem(name):
                problems[name] = f"the id {name!r} {problem}"
            else:
                models[name] = ModelConfig(name, str(directory), stamp=stamp_of(directory))
        paths = sorted(path for path in self._root.glob("*.yaml") if not self._hidden(path))
        self._files = {path: self._files.get(path, []) for path in paths}
        problems |= {path.name: problem for path in paths if (problem := self._read(path, models))}
        for name, problem in problems.items():
            if self._report and self.problems.get(name) != problem:
                log.warning("%s is ignored: %s", self._root / name, problem)
        self.problems = problems
        return models

    def _read(self, path: Path, models: dict[str, ModelConfig]) -> str | None:
        """Add a file's models to `models` and return the file's problem, if it has one."""
        problem = None
        try:
            entry = read_entry(path)
            self._files[path] = [
                replace(m, stamp=stamp_of(Path(m.source))) for m in models_of(entry, self._root)
            ]
        except (OSError, ValueError, yaml.YAMLError) as error:
            problem = " ".join(str(error).split())
        except RecursionError:
            problem = "the file is nested too deeply"
        except Exception as error:  # the YAML reader raises more than its own errors
            problem = f"the file cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"
        for model in self._files[path]:
            if models.get(model.id, model).entry is not None and model.id in models:
                problem = f"another file has the id {model.id!r}"
            else:
                models[model.id] = model
        return problem

    def _hidden(self, path: Path) -> bool:
        """Whether a part of the path starts with a dot, as unfinished downloads and editors' copies do."""
        return any(part.startswith(".") for part in path.relative_to(self._root).parts)

    def _checkpoints(self) -> Iterator[Path]:
        """Yield `DIR/name` and `DIR/org/name` if they have a config.json."""
        root = self._root
        found = sorted(
            c.parent for pattern in ("*/config.json", "*/*/config.json") for c in root.glob(pattern)
        )
        for directory in found:
            # a module's folder inside a checkpoint (1_Pooling/config.json) is not a model
            part = (directory.parent / "config.json").exists() and directory.parent != root
            if not part and not self._hidden(directory):
                yield directory


def read_entry(path: Path) -> CatalogEntry:
    """Read one catalog file.

    Raises:
        OSError, ValueError, yaml.YAMLError: with the problem.
    """
    entry = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), CatalogEntry)
    for name in (entry.id, *entry.aliases):
        if problem := id_problem(name):
            raise ValueError(f"the id {name!r} {problem}")
    return entry


def stamp_of(directory: Path) -> str | None:
    """Return a string that changes with a checkpoint's files; None if the path is not a directory, such as a hub id."""
    if not directory.is_dir():
        return None
    files = sorted(path for pattern in ("*", "*/*") for path in directory.glob(pattern) if path.is_file())
    stats = [(path.relative_to(directory), path.stat()) for path in files]
    return ";".join(f"{name}:{stat.st_mtime_ns}:{stat.st_size}" for name, stat in stats)
