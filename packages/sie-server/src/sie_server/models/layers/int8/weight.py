"""Weights of the int8 format, and their products with rounded inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sie_server.models.layers.activations import IN_PLACE
from sie_server.models.layers.compiled import products as compiled
from sie_server.models.layers.int8.products import pack, product
from sie_server.models.layers.rounding import quantise_rows
from sie_server.room import check_room


class Int8Weight:
    """A weight [outputs, inputs] of 8 bits, and its product with inputs of any floating-point dtype.

    It is packed for `sie-kernels` if that can be used, else for oneDNN.
    """

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        """`numbers` is int8, `scales` [outputs] fp32."""
        self.scales = scales
        self._compiled = compiled.PackedWeight(numbers, scales) if compiled.usable() else None
        self._packed = None if self._compiled else pack(numbers)

    def product(
        self, x: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
    ) -> Tensor:
        """Return activation(x · Wᵀ + b), or x · Wᵀ + b + residual, in the dtype of x."""
        outputs, inputs = len(self.scales), x.shape[1]
        if self._compiled:
            check_room(len(x) * outputs * x.element_size() + compiled.buffers(inputs))
            return self._compiled.product(x, bias, activation, residual)
        assert self._packed is not None
        check_room(len(x) * (8 * outputs + 9 * inputs))
        y = product(*quantise_rows(x), self._packed, self.scales)
        if bias is not None:
            y += bias
        if activation:
            y = IN_PLACE[activation](y)
        if residual is not None:
            y += residual
        return y.to(x.dtype)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as it is computed with, [outputs, inputs]."""
        if self._compiled:
            numbers = self._compiled.numbers()
        else:
            assert self._packed is not None
            numbers = self._packed.to_dense().T
        return (numbers.float() * self.scales[:, None]).to(dtype)
