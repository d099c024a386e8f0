"""Functions of single rows that take several passes over memory, compiled into one kernel each on a GPU.

On a CPU, and where nothing can be compiled, they run as they are written. They are compiled for any number of rows, in
the passes that measure a model before it is ready. Nothing here has run on a GPU yet.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.errors import out_of_memory
from sie_server.models.layers.activations import ACTIVATIONS

log = logging.getLogger("sie_server.rows")
BACKEND = "inductor"
OLDEST = (7, 0)  # compute capability that Triton supports
COMPILERS = ("cc", "gcc", "clang")  # Triton builds its launchers with one of them


@cache
def why_not() -> str | None:
    """Return why nothing is compiled for the GPU of this process; None: it is."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.cuda.get_device_capability() < OLDEST:
        return "the GPU is older than compute capability 7.0"
    if find_spec("triton") is None:
        return "triton is not installed"
    own = os.environ.get("CC")
    if not any(shutil.which(name) for name in ((own,) if own else COMPILERS)):
        return f"there is no C compiler ({own or ', '.join(COMPILERS)})"
    return None


class RowFunction:
    """A function of tensors whose first dimension is rows, compiled on a GPU at its first call."""

    failed: str | None = None  # why compiling failed; for all functions

    def __init__(self, plain: Callable[..., Tensor]) -> None:
        self.plain = plain
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        """Return `plain(x, *rest)`. A single row is not compiled: torch would compile that number for itself."""
        if not _is_on_gpu(x) or len(x) < 2 or RowFunction.failed or _off():
            return self.plain(x, *rest)
        try:
            return self._kernel()(x, *rest)
        except Exception as error:
            if out_of_memory(error) or type(error).__name__ == "AcceleratorError":
                raise
            RowFunction.failed = type(error).__name__
            log.warning("row functions are not compiled: %s: %.300s", RowFunction.failed, error)
        return self.plain(x, *rest)

    def _kernel(self) -> Callable[..., Tensor]:
        if self._compiled is None:
            self._compiled = torch.compile(self.plain, dynamic=True, fullgraph=True, backend=BACKEND)
        return self._compiled


def _is_on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


@cache
def _off() -> bool:
    reason = why_not()
    if reason is None:
        from torch._inductor import config

        config.compile_threads = 1  # in this process: the default starts a pool of processes
    elif torch.cuda.is_available():
        log.warning("row functions are not compiled: %s", reason)
    return reason is not None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _rms_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    # vector_norm is one pass over the data; F.rms_norm on a CPU is six, and takes twice as long (4096 × 1024, bf16)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.rsqrt(norm * norm / x.shape[-1] + eps)
    return wide.mul(scale).mul_(weight).to(x.dtype)


def _added_normed(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x + residual, weight.shape, weight, bias, eps)


rotated = RowFunction(_rotated)  # x [rows, …, dim], cos and sin [rows, …, dim / 2] fp32
rms_normed = RowFunction(_rms_normed)  # x [rows, …, dim], weight [dim] fp32
added_normed = RowFunction(_added_normed)  # x and residual [rows, dim], weight and bias [dim]


def _gate(name: str) -> RowFunction:
    activation = ACTIVATIONS[name]
    return RowFunction(lambda gate, up: activation(gate) * up)


GATES = {name: _gate(name) for name in ACTIVATIONS}  # gate and up [rows, dim]
