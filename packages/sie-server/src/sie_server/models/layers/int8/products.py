"""The product of 8-bit integers through oneDNN, with weights packed once.

The operators are private to torch's compiler. `machine.differences` compares them with a plain product before their
first use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sie_server.models.layers.rounding import ZERO

TYPICAL_ROWS = 2048  # the layout of packed weights is chosen for about this many rows


def pack(weight: Tensor) -> Tensor:
    """Return an int8 weight [outputs, inputs] in oneDNN's own layout; its `to_dense` is [inputs, outputs]."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), [TYPICAL_ROWS, weight.shape[1]])
    return packed


def product(values: Tensor, heights: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Return [rows, outputs] fp32 of `quantise_rows`' values and scales, a packed weight and its scales."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)  # the weights' zero points
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        values, 1.0, ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return result.mul_(heights)
