"""Where a checkpoint comes from: a local directory, or a model hub id that is downloaded into the hub's cache."""

from __future__ import annotations

from pathlib import Path

from sie_server.errors import ModelLoadFailed

# What serving needs and nothing else: no code, no ONNX twins, no training state
FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sie_scorer.json",
    "sie_reranker.yaml",
    "config_sentence_transformers.json",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
    "artifact.metadata",
    "adapter_config.json",
    "adapter_model.bin",
    "sparse_linear.pt",
    "colbert_linear.pt",
    "*/config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "[0-9]_*/pytorch_model.bin",  # a module's weights; those of older repositories are not safetensors
]
HUB_TIMEOUT_S = 10.0
BIN_FILES = ["pytorch_model.bin", "pytorch_model*.bin", "pytorch_model.bin.index.json"]


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


def fetch(source: str, *, revision: str | None, offline: bool) -> Path:
    """The local directory of a checkpoint; blocking, downloads on first use with a progress bar.

    Raises:
        ModelLoadFailed: missing directory, or the hub cannot be reached or has no such model.
    """
    if is_path(source):
        directory = Path(source).expanduser()
        if not _is_directory(source):
            raise failed(f"the model directory {directory} does not exist", "FileNotFoundError")
        if not any(directory.iterdir()):
            raise failed(f"the model directory {directory} is empty", "FileNotFoundError")
        return directory
    return _download(source, revision, offline)


def failed(message: str, error_class: str, *, permanent: bool = True) -> ModelLoadFailed:
    """The load error clients see; `permanent`: trying again changes nothing until someone acts."""
    return ModelLoadFailed(message, error_class=error_class, permanent=permanent, attempts=1)


def _download(source: str, revision: str | None, offline: bool) -> Path:
    # imported here: the library takes a third of a second, and a server with local models never needs it
    from huggingface_hub import HfApi, snapshot_download

    try:
        if offline:
            raise ConnectionError("offline mode is on")
        # asked first because it fails at once without a network, where a download would retry for half a minute
        info = HfApi().model_info(source, revision=revision, timeout=HUB_TIMEOUT_S)
        safe = any(file.rfilename.endswith(".safetensors") for file in info.siblings or [])
        return Path(
            snapshot_download(source, revision=info.sha, allow_patterns=FILES if safe else FILES + BIN_FILES)
        )
    except Exception as error:  # hub, network and file errors share no base class
        cached = _cached(source, revision)
        if cached is None:
            raise _not_fetched(source, error) from error
        return cached


def _cached(source: str, revision: str | None) -> Path | None:
    """The checkpoint as an earlier download left it in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except Exception:  # nothing complete in the cache, under whichever of the library's errors
        return None


def _not_fetched(source: str, error: Exception) -> ModelLoadFailed:
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    return failed(
        f"{source!r} is no local directory, not in the hub's cache, and could not be fetched "
        f"({type(error).__name__}: {reason}). Give a local directory instead (--model {source}=/path/to/checkpoint), "
        "or use the embedded model 'sie/mini-en'",
        type(error).__name__,
        permanent=False,
    )
