"""Files that torch.save has written, read without running pickled code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.storage.formats.stored import STORED_TYPES, StoredTensor, TensorReaders
from sie_server.errors import out_of_memory
from sie_server.files import UnusableFile, open_regular
from sie_server.models.spec import UnsupportedCheckpoint


def read_bin(path: Path) -> TensorReaders:
    try:
        size = _stored_bytes(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnusableFile as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    except Exception as error:  # torch raises half a dozen types for a bad file
        if out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(
            f"{path} is not readable as plain weights (pickled code is never run): {error}"
        ) from error
    if not _is_table(tensors):
        raise UnsupportedCheckpoint(f"{path} is not a plain table of names and tensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            raise UnsupportedCheckpoint(
                f"{path} holds {name!r:.100} as a sparse or nested tensor, or without values"
            )
        if tensor.dtype not in STORED_TYPES.values():
            raise UnsupportedCheckpoint(
                f"{path} holds {name!r:.100} as {tensor.dtype}, which is not supported"
            )
    # a view may repeat one stored number any number of times; tied tables are stored once for two names
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * size:
        raise UnsupportedCheckpoint(f"{path} describes tensors that are larger than the file")
    return {name: StoredTensor(tuple(tensor.shape), tensor.clone) for name, tensor in tensors.items()}


def _stored_bytes(path: Path) -> int:
    """Return the size of a `.bin` file after checking that it is an archive without compression, as torch writes it.

    A compressed entry could fill the memory when it is read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        if start[:1] == b"\x80":  # a pickle: reading it takes as much memory as it says
            raise ValueError(
                "it has the format of torch before 1.6; save it again with torch 1.6 or later, or with save_pretrained"
            )
        if start == b"PK\3\4":  # torch refuses any other content
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it holds compressed entries")
        return size


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and name.isprintable() and isinstance(tensor, Tensor)
        for name, tensor in value.items()
    )
