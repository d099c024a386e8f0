"""Why a checkpoint of the model hub could not be brought here, and what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from sie_server.catalog.revisions import HUB_ID, WHERE
from sie_server.engine.storage.cache import NoCache
from sie_server.engine.storage.integrity import Damage
from sie_server.errors import ModelLoadFailed
from sie_server.files import refusal

# a missing or read-only home, a full disk
NOT_WRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOSPC,
    errno.EDQUOT,
}
TOKENS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_OIDC_RESOURCE",
)  # variables from which the library has a token


class SentDamaged(Exception):
    """The hub sent another content than it says."""


def damaged_cache(source: str, damaged: list[Damage], error: Exception) -> ModelLoadFailed:
    """Return the load error of a damaged checkpoint in the cache, with the file to delete."""
    path = Path(os.path.realpath(damaged[0].path))  # unlike Path.resolve, it accepts circles
    step = f"Delete the file {path} and load" if path.exists() else "Load"
    more = f" (and {len(damaged) - 1} more files are damaged)" if len(damaged) > 1 else ""
    return ModelLoadFailed(
        f"{source!r} is damaged in the hub's cache: {damaged[0]}{more}. It could not be downloaded again: "
        f"{reason(error)}. {step} the model again while the hub can be reached, or copy the file "
        f"{damaged[0].path} from an intact cache",
        error_class="DamagedFile",
        permanent=False,
        attempts=1,
    )


def not_fetched(source: str, revision: str | None, error: Exception) -> ModelLoadFailed:
    """Return the load error of a checkpoint that is neither in the cache nor to be had from the hub."""
    return ModelLoadFailed(
        f"{source!r} is not a local directory, is not in the hub's cache, and could not be downloaded: "
        f"{reason(error, revision)}{_similar(source) or '.'} {_where(source)}"
        "Use a local directory instead (--model ID=/path/to/checkpoint, "
        "--adapter MODEL:NAME=/path/to/adapter); the model 'sie/mini-en' needs no download",
        error_class=type(error).__name__,
        permanent=isinstance(error, tuple(_meanings())),
        attempts=1,
    )


def reason(error: Exception, revision: str | None = None) -> str:
    """Return why a download failed, without a full stop."""
    if isinstance(error, SentDamaged | NoCache):
        return str(error)
    for kind, meaning in _meanings().items():
        if isinstance(error, kind):
            return meaning(revision)
    if isinstance(error, OSError) and error.filename is not None and str(error.filename) == _token_path():
        return f"the token in the file {_token_path()!r} cannot be read ({refusal(error)})"
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return (
            f"its files cannot be stored at {_place(error)!r} ({refusal(error)}); set HF_HOME to a directory "
            "that the server can write, with enough space"
        )
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _similar(source: str) -> str:
    """Return `; did you mean …?` with an id of the catalog that is nearly the same, or an empty string."""
    try:
        from sie_server.catalog import catalog
        from sie_server.config import suggest
    except ImportError:  # the engine also runs without msgspec
        return ""
    known = {name for model in catalog().values() for name in (model.id, *model.aliases)}
    return "" if source in known else suggest(source, sorted(known), cutoff=0.85)


def _where(source: str) -> str:
    """Return where a revision goes, and how a relative directory is written."""
    relative = (
        "" if HUB_ID.fullmatch(source) else f"It is no hub id; a relative directory is written ./{source}. "
    )
    return f"{relative}For a revision: {WHERE}. A relative directory in a YAML file starts at that file's directory. "


def _meanings() -> dict[type[Exception], Callable[[str | None], str]]:
    """Return the hub's errors and what they mean, the more specific ones first."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    return {
        GatedRepoError: lambda _: (
            f"its terms must be accepted on the hub, and HF_TOKEN must be a token of that account{_no_token()}"
        ),
        RepositoryNotFoundError: lambda _: (
            f"the hub has no such model, or it is private and HF_TOKEN grants no access{_no_token()}"
        ),
        RevisionNotFoundError: lambda revision: f"it has no revision {revision!r}",
    }


def _no_token() -> str:
    """Return where the library has found no token; empty if it may have one. It ignores an empty secret silently."""
    path = Path(_token_path())
    if any(os.environ.get(name, "").strip() for name in TOKENS):
        return ""
    try:
        state = "" if path.stat().st_size else "is empty"
    except OSError as error:
        state = f"cannot be read ({refusal(error)})"
    return state and f" (HF_TOKEN is not set, and the file {_token_path()!r} {state})"


def _token_path() -> str:
    from huggingface_hub.constants import HF_TOKEN_PATH

    return HF_TOKEN_PATH


def _place(error: OSError) -> str:
    """Return where a file could not be stored. The error of a full disk names no file."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(error.filename if error.filename is not None else HF_HUB_CACHE)
