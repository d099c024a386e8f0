"""A tensor in a file, before its values are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# the dtypes of a safetensors header (https://huggingface.co/docs/safetensors, "Format")
STORED_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its shape from the header, and a function that reads its values."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


TensorReaders = Mapping[str, StoredTensor]
