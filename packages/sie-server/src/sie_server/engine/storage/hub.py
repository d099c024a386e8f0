"""Checkpoints of a model hub: downloaded into the hub's cache, or read from it if the hub is unreachable."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sie_server.catalog.revisions import HUB_ID, WHERE
from sie_server.engine.storage.tally import Tally
from sie_server.errors import ModelLoadFailed
from sie_server.files import expanded

log = logging.getLogger("sie_server.hub")
# Only the files that serving needs: no code, no ONNX copies, no training state
FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "sie_scorer.json",
    "sie_reranker.yaml",
    "config_sentence_transformers.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "artifact.metadata",
    "adapter_config.json",
    "adapter_model.bin",
    "sparse_linear.pt",
    "colbert_linear.pt",
    "*/config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "[0-9]_*/pytorch_model.bin",  # a module's weights in older repositories without safetensors
]
# The vocabulary of a checkpoint without tokenizer.json
VOCABULARIES = (
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
BIN_FILES = ["pytorch_model.bin", "pytorch_model*.bin", "pytorch_model.bin.index.json"]
TIMEOUT_S = 10.0
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
LOOK_S, LOG_S = 0.5, 10.0  # how often the progress of a download is measured, and how often it is logged


def download(source: str, revision: str | None, *, offline: bool, tally: Tally) -> Path:
    """Return the local directory of ORGANISATION/NAME; blocking. Records progress in `tally`.

    Raises:
        ModelLoadFailed: the hub is unreachable or lacks the model, and the cache lacks it as well.
    """
    # imported here: the import takes a third of a second, and a server with local models never needs it
    from huggingface_hub import HfApi, snapshot_download

    _quiet()
    try:
        if offline:
            raise ConnectionError("offline mode is on")
        # requested first: without a network it fails at once, while a download would retry for half a minute
        info = HfApi().model_info(source, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
        siblings = info.siblings or []
        patterns = _patterns([file.rfilename for file in siblings])
        with _watched(source, _blobs(source, siblings, patterns), tally):
            # by name, not by info.sha: the cache then records which commit the name meant at this time
            return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # hub, network and file errors share no base class
        cached = _cached(source, revision)
        if cached is None:
            raise _not_fetched(source, revision, error) from error
        if not offline:
            log.warning("loading %s from the hub's cache: %s", source, _reason(error))
        return cached


def _patterns(names: list[str]) -> list[str]:
    """Return what to fetch of a repository with these files: old formats only where the new one is missing."""
    old_weights = [] if any(name.endswith(".safetensors") for name in names) else BIN_FILES
    old_vocabulary = [] if "tokenizer.json" in names else [*VOCABULARIES]
    return FILES + old_weights + old_vocabulary


def _quiet() -> None:
    """Switch off the library's telemetry and, outside a terminal, its progress bars; `_watched` logs lines instead."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    # the names of other libraries and of programs around the server are left out of the user agent
    constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_UPDATE_CHECK = True

    if not sys.stderr.isatty():
        disable_progress_bars()


def stay_local() -> None:
    """Forbid requests of transformers and sentence-transformers, which ask the hub about local checkpoints too."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_OFFLINE = True


def _blobs(source: str, siblings: list[Any], patterns: list[str]) -> dict[Path, int]:
    """Return the cache path and size of the content of each file that matches.

    The path is the content's hash, with a suffix while it is being downloaded
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    folder = expanded(HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "blobs"
    needed = filter_repo_objects(siblings, allow_patterns=patterns, key=lambda file: file.rfilename)
    return {folder / (file.lfs.sha256 if file.lfs else file.blob_id): file.size or 0 for file in needed}


@contextmanager
def _watched(source: str, blobs: Mapping[Path, int], tally: Tally) -> Iterator[None]:
    """Update the tally and log the progress while the block runs."""
    tally.total, tally.nbytes = sum(blobs.values()), _downloaded(blobs)
    tally.before, ended = tally.nbytes, Event()

    def look() -> None:
        logged = time.monotonic()
        while not ended.wait(LOOK_S):
            tally.nbytes = _downloaded(blobs)
            if time.monotonic() - logged >= LOG_S:
                logged = time.monotonic()
                log.info(
                    "downloading %s: %.1f of %.1f MiB",
                    source,
                    tally.nbytes / 2**20,
                    (tally.total or 0) / 2**20,
                )

    watcher = Thread(target=look, name="sie-watch-download", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _downloaded(blobs: Mapping[Path, int]) -> int:
    return sum(min(size, _size(blob)) for blob, size in blobs.items())


def _size(blob: Path) -> int:
    """Return the bytes of a content downloaded so far."""
    sizes = [0]
    for path in blob.parent.glob(f"{blob.name}*"):
        with suppress(OSError):  # complete and just renamed
            sizes.append(path.stat().st_size)
    return max(sizes)


def _cached(source: str, revision: str | None) -> Path | None:
    """Return the complete checkpoint of an earlier download in the hub's cache; None: there is none."""
    from huggingface_hub import snapshot_download

    def kept(patterns: list[str]) -> Path | None:
        try:
            return Path(
                snapshot_download(source, revision=revision, allow_patterns=patterns, local_files_only=True)
            )
        except Exception:  # the library raises several types if the cache is incomplete
            return None

    found = kept(FILES)
    return found and kept(_patterns([path.name for path in found.rglob("*")]))


def _not_fetched(source: str, revision: str | None, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"{source!r} is not a local directory, is not in the hub's cache, and could not be downloaded: "
        f"{_reason(error, revision)}. {_where(source)}"
        "Use a local directory instead (--model ID=/path/to/checkpoint, "
        "--adapter MODEL:NAME=/path/to/adapter); the model 'sie/mini-en' needs no download",
        error_class=type(error).__name__,
        permanent=isinstance(error, tuple(_meanings())),
        attempts=1,
    )


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
            "its terms must be accepted on the hub, and HF_TOKEN must be a token of that account"
        ),
        RepositoryNotFoundError: lambda _: (
            "the hub has no such model, or it is private and HF_TOKEN grants no access"
        ),
        RevisionNotFoundError: lambda revision: f"it has no revision {revision!r}",
    }


def _reason(error: Exception, revision: str | None = None) -> str:
    for kind, meaning in _meanings().items():
        if isinstance(error, kind):
            return meaning(revision)
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
        return (
            f"its files cannot be stored at {str(error.filename)!r} ({error.strerror}); set HF_HOME to a directory "
            "that the server can write, with enough space"
        )
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
