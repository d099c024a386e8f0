"""Weights of the int8 format, and their products with rounded inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from sie_server.models.layers.activations import IN_PLACE
from sie_server.models.layers.int8.products import pack, product
from sie_server.models.layers.int8.rows import quantise_rows
from sie_server.room import check_room


class Int8Weight:
    """A packed weight [outputs, inputs] of 8 bits, and its product with inputs of any floating-point dtype."""

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        """`numbers` is int8, `scales` [outputs] fp32."""
        self._packed, self.scales = pack(numbers), scales

    def product(
        self, x: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
    ) -> Tensor:
        """Return activation(x · Wᵀ + b), or x · Wᵀ + b + residual, in the dtype of x."""
        outputs = len(self.scales)
        check_room(len(x) * (8 * outputs + 9 * x.shape[1]))
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
        return (self._packed.to_dense().T.float() * self.scales[:, None]).to(dtype)
