"""Rotary positions: queries and keys are turned by an angle that grows with the position.

RoFormer, Su et al., 2021, https://arxiv.org/abs/2104.09864. The halves of a head are rotated against each other
(dimension i with i + dim/2), as GPT-NeoX laid it out and all models here have it. Computed in fp32 whatever the model
computes in: at position 8,000 a bf16 angle would be off by whole turns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(dim: int, theta: float) -> Tensor:
    """Radians per position of each pair of dimensions: theta^(-2i/dim), [dim / 2] fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


class Rotary:
    """The angles of one batch; rows without a token are turned as position 0."""

    def __init__(self, positions: Tensor, frequencies: Tensor) -> None:
        angles = positions[:, None].float() * frequencies.to(positions.device)  # [rows, dim / 2]
        self.cos, self.sin = angles.cos(), angles.sin()

    def at(self, rows: Tensor | None) -> Rotary:
        """The angles of some rows; None: of all."""
        if rows is None:
            return self
        part = object.__new__(Rotary)
        part.cos, part.sin = self.cos[rows], self.sin[rows]
        return part

    def __call__(self, x: Tensor) -> Tensor:
        """Turn x, [rows, …, dim]; every dimension between is turned alike."""
        shape = (len(self.cos), *(1,) * (x.ndim - 2), -1)
        cos, sin = self.cos.view(shape), self.sin.view(shape)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
