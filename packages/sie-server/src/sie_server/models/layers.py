"""The parts transformer families are assembled from; plain callables over tensors, no training state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models import onednn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Weights(Protocol):
    """Where a model's parts take their tensors from: by name, with the shape they must have."""

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name`, on the model's device and in its dtype unless another is asked for."""
        ...

    def has(self, name: str) -> bool:
        """True when the checkpoint holds a tensor `name`."""
        ...

    def leave(self, prefix: str) -> None:
        """Tensors whose names begin with `prefix` are known and not served."""
        ...

    def take_rows(self, name: str, rows: list[int], *shape: int) -> Tensor:
        """Those rows of the tensor `name` of `shape`, in fp32."""
        ...

    def at(self, prefix: str) -> Weights:
        """The same source, with `prefix.` before every name."""
        ...

    def folder(self, name: str) -> Weights:
        """The weights in a folder of the checkpoint that has its own file."""
        ...


class Residual(Protocol):
    """A product whose result is added to `residual`; a family may do something to it before."""

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor: ...


class Linear:
    """x · Wᵀ + b, with W [outputs, inputs]; where the processor has a kernel for it, in one pass with what follows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None  # set at the first product, when nothing splits the weights
        self._asked = False

    @classmethod
    def load(
        cls,
        weights: Weights,
        name: str,
        outputs: int,
        inputs: int,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> Linear:
        part = weights.at(name)
        return cls(
            part.take("weight", outputs, inputs, dtype=dtype),
            part.take("bias", outputs, dtype=dtype) if bias else None,
        )

    @classmethod
    def fused(cls, weights: Weights, names: list[str], outputs: int, inputs: int) -> Linear:
        """Several projections of one input as a single product, in the order of `names`."""
        parts = [cls.load(weights, name, outputs, inputs) for name in names]
        return cls(
            torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts if p.bias is not None])
        )

    def split(self, outputs: int) -> tuple[Linear, Linear]:
        """The first `outputs` outputs and the others, as views of the same weights."""
        w, b = self.weight, self.bias
        head, tail = slice(None, outputs), slice(outputs, None)
        return Linear(w[head], None if b is None else b[head]), Linear(
            w[tail], None if b is None else b[tail]
        )

    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """activation(x · Wᵀ + b), or x · Wᵀ + b + residual; x is [rows, inputs]."""
        if not self._asked:
            self._pack()
        if self._packed is not None:
            return onednn.linear(x, self._packed, self.bias, activation, residual)
        y = F.linear(x, self.weight, self.bias)
        y = ACTIVATIONS[activation](y) if activation else y
        return y if residual is None else y + residual

    def _pack(self) -> None:
        self._asked, self._packed = True, onednn.pack(self.weight)
        if self._packed is not None:
            self.weight = self.weight.new_empty(0)  # the packed copy replaces it


class LayerNorm:
    """Normalisation over the last dimension; the statistics are computed in fp32 by the kernel."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    @classmethod
    def load(
        cls,
        weights: Weights,
        name: str,
        size: int,
        eps: float,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> LayerNorm:
        part = weights.at(name)
        return cls(
            part.take("weight", size, dtype=dtype),
            part.take("bias", size, dtype=dtype) if bias else None,
            eps,
        )

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Squashed to ±cap, nearly unchanged far below; None: unchanged."""
    return x if cap is None else cap * torch.tanh(x / cap)
