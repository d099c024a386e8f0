"""Files in the safetensors format, read without mapping them into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sie_server.engine.storage.formats.stored import STORED_TYPES, StoredTensor, TensorReaders
from sie_server.errors import out_of_memory
from sie_server.files import UnusableFile, open_regular
from sie_server.models.spec import UnsupportedCheckpoint

HEADER_BYTES = 32 * 2**20  # 100,000 tensors take 12 MiB


def read_safetensors(path: Path) -> TensorReaders:
    """Check a file with the library and return readers that do not map it into memory.

    Truncating or overwriting a mapped file would kill the process or change the weights of a loaded model.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
                raise ValueError(f"its header has {size} bytes")
            with safe_open(path, framework="pt"):  # checks the header against the file
                header = json.loads(file.read(size))
    except UnusableFile as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if out_of_memory(error):
            raise
        raise UnsupportedCheckpoint(f"{path} is truncated or not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(tuple(entry["shape"]), partial(_read_values, path, 8 + size, entry))
        for name, entry in header.items()
    }


def _read_values(path: Path, data: int, entry: Mapping[str, Any]) -> Tensor:
    """Read the values of a header entry; `data` is the offset of the values in the file."""
    if entry["dtype"] not in STORED_TYPES:
        raise UnsupportedCheckpoint(
            f"{path} holds {entry['dtype']} values; supported are {', '.join(STORED_TYPES)}"
        )
    start, end = entry["data_offsets"]
    try:
        with open_regular(path) as file:
            values = np.fromfile(file, np.uint8, count=end - start, offset=data + start)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{path} cannot be read: {error}") from error
    if len(values) != end - start:
        raise UnsupportedCheckpoint(f"{path} was truncated while it was read")
    dtype, shape = STORED_TYPES[entry["dtype"]], entry["shape"]
    if not len(values):  # torch cannot reinterpret an empty array as another dtype
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(values).view(dtype).view(shape)
