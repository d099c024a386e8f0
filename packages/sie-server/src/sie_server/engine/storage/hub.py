"""Checkpoints of a model hub: downloaded into the hub's cache, or read from it if the hub is unreachable."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from sie_server.engine.storage.cache import MAIN, CachedRepository, NoCache
from sie_server.engine.storage.failures import SentDamaged, damaged_cache, not_fetched, reason
from sie_server.engine.storage.integrity import Damage, Expected, damages, hashes
from sie_server.engine.storage.tally import LoadStopped, Tally, watched

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


def download(source: str, revision: str | None, *, offline: bool, tally: Tally) -> Path:
    """Return the local directory of ORGANISATION/NAME; blocking. Records progress in `tally`.

    Its files are those that the hub names: a damaged one is downloaded again, once.

    Raises:
        ModelLoadFailed: the hub is unreachable or lacks the model, and the cache lacks it as well or is damaged.
        LoadStopped: the load was given up.
    """
    _quiet()
    try:
        repository = CachedRepository(source)
    except NoCache as error:
        raise not_fetched(source, revision, error) from error
    try:
        if offline:
            raise ConnectionError("offline mode is on")
        return _fetched(source, revision, repository, tally)
    except LoadStopped:
        raise
    except Exception as error:  # hub, network and file errors share no base class
        cached = _cached(source, revision, repository, error, tally)
        if not offline:
            log.warning("loading %s from the hub's cache: %s", source, reason(error))
        if tally.commit not in (None, cached.name):  # the log has the reason, which may contain paths
            tally.warning = f"the update to commit {tally.commit} failed; commit {cached.name} is served"
        return cached


def _fetched(source: str, revision: str | None, repository: CachedRepository, tally: Tally) -> Path:
    """Return the directory of the commit that the revision means now, with every needed file intact."""
    # imported here: the import takes a third of a second, and a server with local models never needs it
    from huggingface_hub import HfApi, snapshot_download

    # requested first: without a network it fails at once, while a download would retry for half a minute
    info = HfApi().model_info(source, revision=revision, timeout=TIMEOUT_S, files_metadata=True)
    files = {
        file.rfilename: Expected(file.size, hashes(file.lfs.sha256 if file.lfs else file.blob_id))
        for file in info.siblings or []
    }
    needed = _needed(files)
    commit = info.sha or revision or MAIN  # a mirror may not name the commit
    tally.commit = info.sha
    repository.correct_listing(commit, files)
    with watched(source, _blobs(repository, needed), tally):
        directory = Path(snapshot_download(source, revision=commit, allow_patterns=_patterns([*files])))
        for damage in damages(directory, needed, tally):
            log.warning("%s: %s in the hub's cache, and is downloaded again", source, damage)
            _renew(source, directory, damage, needed, tally)
    # recorded only now: until an update is complete, the name means the version before it
    repository.record(revision or MAIN, directory.name)
    return directory


def _renew(source: str, snapshot: Path, damage: Damage, needed: dict[str, Expected], tally: Tally) -> None:
    """Download a damaged file again.

    The library replaces the old content as a whole, so a process that has opened it can finish reading it.

    Raises:
        SentDamaged: the hub sends another content than it says.
    """
    from huggingface_hub import hf_hub_download

    name, commit = damage.name, snapshot.name
    file = {name: needed[name]}
    hf_hub_download(source, name, revision=commit, force_download=True)
    if damages(snapshot, file, tally):
        # the snapshot has a file of its own, or a link to another content: it gets a link to the new one
        damage.path.unlink(missing_ok=True)
        hf_hub_download(source, name, revision=commit)
    if again := damages(snapshot, file, tally):
        raise SentDamaged(f"the hub sent {again[0].name} again, and it {again[0].reason}")


def _blobs(repository: CachedRepository, files: dict[str, Expected]) -> dict[Path, int]:
    """Return the cache path and size of the content of each file. Downloads add a suffix to the path."""
    return {repository.blobs / known.hashes[0]: known.size or 0 for known in files.values() if known.hashes}


def _needed(files: dict[str, Expected]) -> dict[str, Expected]:
    """Return the files that serving needs."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    return {name: files[name] for name in filter_repo_objects([*files], allow_patterns=_patterns([*files]))}


def _patterns(names: list[str]) -> list[str]:
    """Return what to fetch of a repository with these files: old formats only where the new one is missing."""
    old_weights = [] if any(name.endswith(".safetensors") for name in names) else BIN_FILES
    old_vocabulary = [] if "tokenizer.json" in names else [*VOCABULARIES]
    return FILES + old_weights + old_vocabulary


def _quiet() -> None:
    """Switch off the library's telemetry and, outside a terminal, its progress bars; `watched` logs lines instead."""
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


def _cached(
    source: str, revision: str | None, repository: CachedRepository, error: Exception, tally: Tally
) -> Path:
    """Return the newest complete checkpoint of earlier downloads in the hub's cache, after the hub gave `error`.

    Raises:
        ModelLoadFailed: there is none, or the one that should serve is damaged.
    """
    damaged = list[Damage]()
    commits = repository.commits(revision)
    for commit in commits:
        if found := _damages(repository, commit, tally):
            damaged = damaged or found
            if commit == commits[0] and not all(damage.partly for damage in found):
                break  # it was complete and served: an older one would be a surprise
            continue
        if revision is None and (damaged := damaged or _interrupted(repository, commit, tally)):
            tally.warning = (
                f"the update to commit {damaged[0].path.relative_to(repository.snapshots).parts[0]} is incomplete in "
                f"the hub's cache ({damaged[0]}); commit {commit}, the newest complete one, is served"
            )
            log.warning("%s: %s", source, tally.warning)
        return repository.snapshot(commit)
    raise (
        damaged_cache(source, damaged, error) if damaged else not_fetched(source, revision, error)
    ) from error


def _damages(
    repository: CachedRepository, commit: str, tally: Tally, *, contents: bool = True
) -> list[Damage]:
    """Return the damages of a commit's files in the cache, as far as the cache knows; `contents`: hash the files."""
    snapshot = repository.snapshot(commit)
    if repository.listing(commit) is None and (name := repository.lacking(commit)):
        return [Damage(name, snapshot / name, "is missing", partly=True)]
    files = _needed(repository.known(commit))
    if not contents:
        files = {name: Expected(known.size, ()) for name, known in files.items()}
    return damages(snapshot, files, tally)


def _interrupted(repository: CachedRepository, commit: str, tally: Tally) -> list[Damage]:
    """Return the missing files of a commit newer than the one that serves; empty if there are none."""
    found = (_damages(repository, newer, tally, contents=False) for newer in repository.newer(commit))
    return next(filter(None, found), [])
