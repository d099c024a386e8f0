"""Rounding to 8 bits: weights with a scale per output, inputs with a scale per row."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
ZERO = 128  # the unsigned value of an input that is 0; oneDNN's fast products take unsigned inputs
# inputs of one product; the sum of 255 · 127 over more of them would not fit into 32 bits
MOST_INPUTS = (2**31 - 1) // (255 * LARGEST)
SMALLEST = 1e-30  # the scale of a row of zeros is not 0, so that it can be divided by


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight [outputs, inputs] rounded to -127 to 127, int8, and the scale of each output, [outputs] fp32."""
    wide = weight.float()
    scales = wide.abs().amax(1).div_(LARGEST).clamp_(min=SMALLEST)
    return (wide / scales[:, None]).round_().to(torch.int8), scales


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round inputs [rows, inputs] to uint8 around `ZERO`; return them with the scale of each row, [rows, 1] fp32.

    The scale of a row with a value that is not finite is not finite, and so are its products.
    """
    wide = x.float()
    scales = torch.linalg.vector_norm(wide, float("inf"), dim=1, keepdim=True).div_(LARGEST)
    scales = scales.clamp_(min=SMALLEST)
    # the conversion to integers truncates, so the half rounds to the nearest one
    shifted = torch.addcmul(wide.new_tensor(ZERO + 0.5), wide, scales.reciprocal())
    return shifted.to(torch.uint8), scales
