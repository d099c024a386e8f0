"""The changes of a low-rank adapter (LoRA, Hu et al., 2021, https://arxiv.org/abs/2106.09685), as data.

An adapter maps each layer to the change it makes there. Sequences of one adapter lie next to each other in a batch, so
a change is one product over a slice of the rows. The layer's own weights are never written. `models.layers.adapted`
selects the rows of the current batch that a layer changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# oneDNN compiles a kernel for each number of rows, in about a millisecond, and keeps 1,024. With arbitrary numbers they
# would evict each other and those of the model, so only multiples of this one are used.
WINDOW = 128


@dataclass(frozen=True)
class Target:
    """A module of the checkpoint, which adapters refer to by name, and the layer that contains it."""

    layer: Any  # a `layers.Linear` or `layers.LayerNorm`
    shape: tuple[int, ...]  # of the module's weight: [outputs, inputs], or [size] of a norm
    outputs: slice  # the layer's outputs that belong to the module
    rows: list[int] | None = None  # the module's rows that the layer has kept; None: all

    @property
    def linear(self) -> bool:
        return len(self.shape) == 2


@dataclass(frozen=True)
class Delta:
    """The change of a linear layer: x · A · B for each pair, and a shift of the bias."""

    # A [inputs, rank], or None: x itself; B [rank, outputs]
    products: tuple[tuple[Tensor | None, Tensor], ...]
    shift: Tensor | None  # [outputs]

    def add(self, x: Tensor, y: Tensor, rows: slice) -> None:
        """Add the change to `rows` of `y` [rows, outputs], in place."""
        for a, b in self.products:
            if a is None:
                y[rows].addmm_(x[rows], b)
                continue
            near = _window(rows, len(x))
            low = x[near] @ a
            before, end = rows.start - near.start, rows.stop - near.start
            # adding 0 leaves the other rows of the window as they are
            if before:
                low[:before].zero_()
            if end < len(low):
                low[end:].zero_()
            y[near].addmm_(low, b)
        if self.shift is not None:
            y[rows] += self.shift

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (*sum(self.products, ()), self.shift) if t is not None]


@dataclass(frozen=True)
class Norm:
    """The weights that replace those of a layer norm."""

    weight: Tensor
    bias: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def _window(rows: slice, total: int) -> slice:
    """Extend `rows` to a multiple of `WINDOW`, or to all rows if there are fewer."""
    size = min(-(-(rows.stop - rows.start) // WINDOW) * WINDOW, total)
    start = min(rows.start, total - size)
    return slice(start, start + size)


Changes = Mapping[Any, Delta | Norm]  # layer → its change


@dataclass(frozen=True)
class Span:
    """The part of a batch with one adapter."""

    changes: Changes
    rows: slice
    sequences: slice  # in packed order
