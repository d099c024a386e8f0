"""The weights of a checkpoint directory: one file, or shards with an index."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sie_server.catalog.contents import instead_of_weights
from sie_server.engine.storage.formats.bin_file import read_bin
from sie_server.engine.storage.formats.safetensors_file import read_safetensors
from sie_server.engine.storage.formats.stored import StoredTensor, TensorReaders
from sie_server.files import entries, read_json
from sie_server.models.heads.sparse import M3_FILES
from sie_server.models.spec import UnsupportedCheckpoint

OLD_NAMES = {"gamma": "weight", "beta": "bias"}
OLD_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")


def stored_elements(directory: Path) -> int:
    """Return how many numbers a checkpoint holds, modules' folders included, from the headers.

    Raises:
        UnsupportedCheckpoint: there are no weights, or they are not readable.
    """
    return sum(math.prod(tensor.shape) for table in _tables(directory) for tensor in table.values())


def _tables(directory: Path) -> Iterator[TensorReaders]:
    yield open_checkpoint(directory)
    yield from (read_bin(directory / name) for name in M3_FILES if (directory / name).exists())
    for folder in sorted(entry.name for entry in entries(directory) if entry.is_dir()):
        names = ("model.safetensors", "pytorch_model.bin")
        part = directory / folder
        if (part / "config.json").exists() and any((part / name).exists() for name in names):
            yield open_checkpoint(part)


def open_checkpoint(directory: Path) -> TensorReaders:
    """Open the safetensors weights (whole or sharded) of a directory, else a pickle-free `.bin`."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_bin)):
        single, index = directory / name, directory / f"{name}.index.json"
        if single.exists():
            return _renamed(read(single))
        if index.exists():
            return _renamed(_read_shards(index, read))
    raise UnsupportedCheckpoint(
        f"no weights in {directory}: neither model.safetensors nor pytorch_model.bin; {instead_of_weights(directory)}"
    )


def _renamed(tensors: TensorReaders) -> TensorReaders:
    """Give the norms of checkpoints converted from TensorFlow the names of today, as transformers does."""
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        new = OLD_NORM.sub(lambda match: f"LayerNorm.{OLD_NAMES[match[1]]}", name)
        if new in renamed or (new != name and new in tensors):
            raise UnsupportedCheckpoint(f"the checkpoint has both {name!r:.100} and {new!r:.100}; keep one")
        renamed[new] = tensor
    return renamed


def tensor_readers(path: Path) -> TensorReaders:
    """Open the tensors of a file, safetensors or a pickle-free `.bin`."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_bin(path)


def _read_shards(index: Path, read: Callable[[Path], TensorReaders]) -> TensorReaders:
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
        names = [
            Path(shard).name for shard in shards
        ]  # shards are in the index's directory; any other path is ignored
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UnsupportedCheckpoint(f"{index} is not a weight index: {error!r}") from error
    readers: dict[str, StoredTensor] = {}
    for name in names:
        if not name or not _exists(index.parent / name):
            raise UnsupportedCheckpoint(
                f"{index.name} names {name!r:.100}, which is missing; the download is incomplete: download it again"
            )
        readers.update(read(index.parent / name))
    return readers


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False
