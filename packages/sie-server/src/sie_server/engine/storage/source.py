"""Where a checkpoint comes from: a local directory, or a model hub id that is downloaded into the hub's cache."""

from __future__ import annotations

from pathlib import Path

from sie_server.engine.storage import hub
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed


def is_path(source: str) -> bool:
    """A directory rather than a hub id: absolute, dotted, in the home directory, or existing."""
    return source.startswith(("/", "./", "../", "~", "\\")) or _is_directory(source)


def same_place(one: str, other: str) -> bool:
    """True when both mean the same directory, however it is written, or the same hub id."""
    if one == other or not (is_path(one) and is_path(other)):
        return one == other
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _is_directory(source: str) -> bool:
    """False also for what cannot be the name of one."""
    try:
        return Path(source).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long; the home directory of nobody
        return False


def fetch(source: str, *, revision: str | None, offline: bool, tally: Tally | None = None) -> Path:
    """The local directory of a checkpoint; blocking, downloads on first use. `tally` says how far that is.

    Raises:
        ModelLoadFailed: missing directory, or the hub cannot be reached or has no such model.
    """
    if is_path(source):
        return _local(source)
    return hub.download(source, revision, offline=offline, tally=tally or Tally())


def _local(source: str) -> Path:
    try:
        directory = Path(source).expanduser()
        empty = not any(directory.iterdir())
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: the home directory of nobody
        reason = error.strerror if isinstance(error, OSError) else error
        raise failed(f"{source} is no directory that can be read: {reason}", type(error).__name__) from error
    if empty:
        raise failed(f"the directory {directory} is empty", "FileNotFoundError")
    return directory


def failed(message: str, error_class: str, *, permanent: bool = True) -> ModelLoadFailed:
    """The load error clients see; `permanent`: trying again changes nothing until someone acts."""
    return ModelLoadFailed(message, error_class=error_class, permanent=permanent, attempts=1)
