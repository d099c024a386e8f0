"""The copies of a pass's results to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Leaving:
    """Tensors on their way to the host. On a GPU the copies wait behind the pass, and the caller does not."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host = [_started(tensor) for tensor in tensors]
        self._copied: Any = None
        if any(tensor.is_cuda for tensor in tensors):
            self._copied = torch.cuda.Event()
            self._copied.record()

    def arrays(self) -> list[Any]:
        """Wait until the copies are complete, and return them as arrays."""
        if self._copied is not None:
            self._copied.synchronize()
        return [tensor.numpy() for tensor in self._host]


def _started(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    # only a copy into pinned memory does not wait; torch reuses pinned blocks, each after the copies that use it
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
