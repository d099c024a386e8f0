"""The source of a checkpoint: a local directory, or a hub id that is downloaded into the hub's cache."""

from __future__ import annotations

from pathlib import Path

from sie_server.catalog.contents import instead_of_directory
from sie_server.catalog.revisions import is_path, split_revision
from sie_server.engine.storage import hub
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ConfigError, ModelLoadFailed, cut_quotes
from sie_server.files import expanded


def same_place(one: str, other: str) -> bool:
    """Return whether both sources name the same directory, in any notation, or the same hub id."""
    if one == other or not (is_path(one) and is_path(other)):
        return one == other
    return expanded(one).resolve() == expanded(other).resolve()


def fetch(source: str, *, revision: str | None, offline: bool, tally: Tally | None = None) -> Path:
    """Return the local directory of a checkpoint; blocking. Downloads on first use and records progress in `tally`.

    Raises:
        ModelLoadFailed: the directory is missing, or the hub is unreachable or lacks the model.
    """
    if is_path(source):
        return _local(source)
    if revision is None:
        try:
            source, revision = split_revision(source)
        except ConfigError as error:
            raise failed(str(error), type(error).__name__) from error
    return hub.download(source, revision, offline=offline, tally=tally or Tally())


def _local(source: str) -> Path:
    try:
        directory = expanded(source)
        empty = next(directory.iterdir(), None) is None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, NotADirectoryError):
            reason = f"it is {instead_of_directory(expanded(source))}"
        raise failed(f"{source} is not a readable directory: {reason}", type(error).__name__) from error
    if empty:
        raise failed(f"the directory {directory} is empty; put a checkpoint into it", "FileNotFoundError")
    return directory


def unsupported(directory: Path, error: Exception) -> ModelLoadFailed:
    """Return the load error of a checkpoint that cannot be read or served."""
    return failed(f"cannot load {directory}: {error}", "UnsupportedCheckpoint")


def failed(message: str, error_class: str, *, permanent: bool = True) -> ModelLoadFailed:
    """Return the load error for clients; `permanent`: a retry fails until the operator acts."""
    return ModelLoadFailed(cut_quotes(message), error_class=error_class, permanent=permanent, attempts=1)
