"""Rotary positions: queries and keys are rotated by an angle that grows with the position.

RoFormer, Su et al., 2021, https://arxiv.org/abs/2104.09864. Dimension i of a head is paired with i + dim/2, as in
GPT-NeoX and in all models here. Angles are computed in fp32 for every model dtype: at position 8,000 a bf16 angle
would be wrong by full rotations.

`read_rope` reads both spellings of `config.json`: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` (transformers 4). The scaling formulas are those of `transformers.modeling_rope_utils`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sie_server.models.layers.rows import rotated
from sie_server.models.spec import UnsupportedCheckpoint

KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """The parameters from which the rotation frequency of each pair of dimensions is computed."""

    dim: int  # rotated dimensions; the whole head in all supported families
    theta: float
    kind: str = "default"  # one of KINDS
    factor: float = 1.0  # linear, llama3: positions are divided by it
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 1.0  # llama3
    original_length: int = 0  # llama3, tokens


def read_rope(config: dict[str, Any], dim: int) -> RopeSpec:
    """Read the rotary fields of a `config.json`.

    Raises:
        UnsupportedCheckpoint: the kind of scaling is not supported.
    """
    # of both, transformers 5 takes the older one whole, also its missing rope_theta (modeling_rope_utils)
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = str(given.get("rope_type") or given.get("type") or "default")
    if kind not in KINDS:
        raise UnsupportedCheckpoint(f"rope_type {kind!r} is not supported; supported: {', '.join(KINDS)}")
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedCheckpoint("partial_rotary_factor is not 1; only 1 is supported")
    theta = float(given.get("rope_theta", config.get("rope_theta", 10000.0)))
    if kind == "default":
        return RopeSpec(dim=dim, theta=theta)
    if kind == "linear":
        return RopeSpec(dim=dim, theta=theta, kind=kind, factor=float(given["factor"]))
    if not given["low_freq_factor"] < given["high_freq_factor"]:
        raise UnsupportedCheckpoint("low_freq_factor must be below high_freq_factor in the rotary parameters")
    return RopeSpec(
        dim=dim,
        theta=theta,
        kind=kind,
        factor=float(given["factor"]),
        low_freq_factor=float(given["low_freq_factor"]),
        high_freq_factor=float(given["high_freq_factor"]),
        original_length=int(
            given.get("original_max_position_embeddings") or config["max_position_embeddings"]
        ),
    )


def inverse_frequencies(dim: int, theta: float) -> Tensor:
    """Return the radians per position of each pair of dimensions: theta^(-2i/dim), [dim / 2] fp32."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def scaled_frequencies(spec: RopeSpec) -> Tensor:
    """Return the radians per position of each pair of dimensions, scaled, [dim / 2] fp32."""
    plain = inverse_frequencies(spec.dim, spec.theta)
    if spec.kind == "llama3":
        return _llama3(plain, spec)
    return plain / spec.factor


def _llama3(plain: Tensor, spec: RopeSpec) -> Tensor:
    """Divide the frequencies of long waves, keep those of short ones, and blend in between (Llama 3.1)."""
    wavelength = 2 * math.pi / plain
    share = (spec.original_length / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    between = (1 - share) * plain / spec.factor + share * plain
    long = wavelength > spec.original_length / spec.low_freq_factor
    short = wavelength < spec.original_length / spec.high_freq_factor
    return torch.where(long, plain / spec.factor, torch.where(short, plain, between))


class Rotary:
    """The rotation angles of one batch; rows without a token have position 0."""

    def __init__(self, positions: Tensor, frequencies: Tensor) -> None:
        angles = positions[:, None].float() * frequencies.to(positions.device)  # [rows, dim / 2]
        self.cos, self.sin = angles.cos(), angles.sin()

    def at(self, rows: Tensor | None) -> Rotary:
        """Return the angles of `rows`; None: of all rows."""
        if rows is None:
            return self
        part = object.__new__(Rotary)
        part.cos, part.sin = self.cos[rows], self.sin[rows]
        return part

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x, [rows, …, dim]; the middle dimensions share the angles of their row."""
        shape = (len(self.cos), *(1,) * (x.ndim - 2), -1)
        cos, sin = self.cos.view(shape), self.sin.view(shape)
        return rotated(x, cos, sin)
