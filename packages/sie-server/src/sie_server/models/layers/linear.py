"""Linear layers and layer norms as plain callables over tensors, and the source they load their weights from."""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers import onednn
from sie_server.models.layers.activations import ACTIVATIONS, IN_PLACE
from sie_server.models.layers.adapted import changes_of
from sie_server.models.layers.int8.weight import Int8Weight
from sie_server.models.layers.rows import added_normed
from sie_server.models.lora import Target
from sie_server.room import check_room

_PACKING = threading.Lock()


class Weights(Protocol):
    """The source of a model's tensors; each is taken by name, with the shape it must have."""

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        ...

    @property
    def int8(self) -> bool:
        """Whether the products of the layers are computed with 8-bit integers."""
        ...

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor `name` on the model's device, in `dtype` or else the model's dtype."""
        ...

    def take_int8(self, name: str, *shape: int) -> tuple[Tensor, Tensor]:
        """Return the matrix `name` rounded to int8, and the scale of each of its rows in fp32."""
        ...

    def has(self, name: str) -> bool:
        """Return True when the checkpoint has a tensor `name`."""
        ...

    def check(self, name: str, *shape: int) -> None:
        """Check that the checkpoint has a tensor `name` of `shape`, without reading it."""
        ...

    def leave(self, prefix: str) -> None:
        """Mark tensors whose names begin with `prefix` as known and not needed."""
        ...

    def ignore(self, pattern: str) -> None:
        """Mark tensors whose names contain a match of `pattern`, a regular expression, as known and not needed."""
        ...

    def take_rows(self, name: str, rows: list[int], *shape: int) -> Tensor:
        """Return `rows` of the tensor `name` of `shape`, in fp32."""
        ...

    def at(self, prefix: str) -> Weights:
        """Return the same source with `prefix.` before every name."""
        ...

    def inside(self, prefix: str) -> Weights:
        """Return `at(prefix)` if the checkpoint has such names, else the same source.

        Adapters refer to the modules without the prefix in both cases.
        """
        ...

    def folder(self, name: str) -> Weights:
        """Return the source for a folder of the checkpoint that has its own weight file."""
        ...

    def became(self, name: str, target: Target) -> None:
        """Record the layer that contains the module `name`, by which adapters refer to it."""
        ...


class Residual(Protocol):
    """A product that is added to `residual`; a family may scale or normalise it first."""

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor: ...


class Linear:
    """x · Wᵀ + b, with W [outputs, inputs]; one pass with the following operation where the CPU has a kernel for it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, integers: Int8Weight | None = None) -> None:
        """With `integers` the weight is these, and `weight` is an empty tensor of the dtype of the results."""
        self.weight, self.bias, self.integers = weight, bias, integers
        self.outputs = weight.shape[0] if integers is None else len(integers.scales)
        self._packed: Tensor | None = None  # set at the first product: the weights are not split after it
        self._tried_to_pack = False

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
        return cls.fused(weights, {name: outputs}, inputs, dtype, bias=bias)

    @classmethod
    def fused(
        cls,
        weights: Weights,
        outputs: dict[str, int],
        inputs: int,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> Linear:
        """Load several projections of one input as a single product, in the order of `outputs` (name → width).

        Without a `dtype` it is a part of a layer: its weight is in the model's format, which may be int8.
        """
        parts = [(weights.at(name), width) for name, width in outputs.items()]
        integers: Int8Weight | None = None
        if weights.int8 and dtype is None:
            rounded = [part.take_int8("weight", width, inputs) for part, width in parts]
            integers = Int8Weight(_joined([n for n, _ in rounded]), _joined([s for _, s in rounded]))
            matrix = torch.empty(0, dtype=weights.dtype)
        else:
            matrix = _joined([part.take("weight", width, inputs, dtype=dtype) for part, width in parts])
        biases = [part.take("bias", width, dtype=dtype) for part, width in parts] if bias else None
        linear = cls(matrix, None if biases is None else _joined(biases), integers)
        start = 0
        for name, width in outputs.items():
            weights.became(name, Target(linear, (width, inputs), slice(start, start + width)))
            start += width
        return linear

    def split(self, outputs: int) -> tuple[Linear, Linear]:
        """Return the first `outputs` outputs and the others, as views of the same weights."""
        w, b = self.weight, self.bias
        if b is None:
            return Linear(w[:outputs], None), Linear(w[outputs:], None)
        return Linear(w[:outputs], b[:outputs]), Linear(w[outputs:], b[outputs:])

    def __call__(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """Return activation(x · Wᵀ + b), or x · Wᵀ + b + residual; x is [rows, inputs]."""
        changes = changes_of(self, len(x))
        if not changes:
            return self._product(x, activation, residual)
        y = self._product(x, None, residual)
        for rows, change in changes:
            change.add(x, y, rows)
        return IN_PLACE[activation](y) if activation else y

    def _product(self, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        if self.integers is not None:
            return self.integers.product(x, self.bias, activation, residual)
        if x.device.type == "cpu":
            check_room(len(x) * self.outputs * x.element_size())
        if not self._tried_to_pack:
            self._pack()
        if self._packed is not None:
            return onednn.linear(x, self._packed, self.bias, activation, residual)
        y = F.linear(x, self.weight, self.bias)
        y = ACTIVATIONS[activation](y) if activation else y
        return y if residual is None else y + residual

    def plain_weight(self) -> Tensor:
        """Return W as it is computed with, [outputs, inputs]; safe while another thread computes products."""
        if self.integers is not None:
            return self.integers.plain(self.weight.dtype)
        weight = self.weight  # read first: it is dropped only after the packed copy exists
        return weight if weight.numel() or self._packed is None else self._packed.to_dense()

    def rounding(self) -> Tensor | None:
        """Return how far each row of W may differ from the checkpoint's, [outputs, 1]; None: as its dtype rounds."""
        return None if self.integers is None else self.integers.scales[:, None]

    def _pack(self) -> None:
        with _PACKING:  # of two device threads one packs
            if self._tried_to_pack:
                return
            self._packed = onednn.pack(self.weight)
            self._tried_to_pack = True
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
        norm = cls(
            part.take("weight", size, dtype=dtype),
            part.take("bias", size, dtype=dtype) if bias else None,
            eps,
        )
        weights.became(name, Target(norm, (size,), slice(0, size)))
        return norm

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        for rows, other in changes_of(self, len(x)):
            y[rows] = F.layer_norm(x[rows], self.weight.shape, other.weight, other.bias, self.eps)
        return y

    def of_sum(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the norm of x + residual, in one pass on a GPU."""
        if changes_of(self, len(x)):
            return self(x + residual)
        return added_normed(x, residual, self.weight, self.bias, self.eps)


def normed_residual(norm: LayerNorm, linear: Linear, x: Tensor, residual: Tensor) -> Tensor:
    """Return norm(linear(x) + residual): the sum is a part of the product on a CPU, and of the norm on a GPU."""
    if x.device.type == "cuda":
        return norm.of_sum(linear(x), residual)
    return norm(linear(x, residual=residual))


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Return cap · tanh(x / cap), which is nearly x far below the cap; x itself where `cap` is None."""
    return x if cap is None else cap * torch.tanh(x / cap)


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
