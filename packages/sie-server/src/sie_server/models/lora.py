"""Low-rank adapters (LoRA, Hu et al., 2021, https://arxiv.org/abs/2106.09685) applied per sequence.

An adapter is a table: layer → what it changes there. Sequences of one adapter lie next to each other in a batch, so a
change is one product over a slice of the rows; the layer's own weights are never written. A layer learns which rows are
whose from `applied`, which holds for the forward pass of one thread: no family has to pass it on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from sie_server.models.batch import PackedBatch

# oneDNN compiles a kernel for each number of rows, in about a millisecond, and keeps 1,024. Products of any length
# would push each other and the model's own out; so there are few lengths.
WINDOW = 128


@dataclass(frozen=True)
class Target:
    """A module of the checkpoint, by whose name an adapter means it, and the layer it has become part of."""

    layer: Any  # a `layers.Linear` or `layers.LayerNorm`
    shape: tuple[int, ...]  # of the module's weight: [outputs, inputs], or [size] of a norm
    outputs: slice  # of the layer, those that are the module's
    rows: list[int] | None = None  # of the module, those that the layer has kept; None: all

    @property
    def linear(self) -> bool:
        return len(self.shape) == 2


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to a linear layer: x · A · B for each pair, and a shift of the bias."""

    products: tuple[
        tuple[Tensor | None, Tensor], ...
    ]  # A [inputs, rank], or None: x itself; B [rank, outputs]
    shift: Tensor | None  # [outputs]

    def add(self, x: Tensor, y: Tensor, rows: slice) -> None:
        """To those rows of `y` [rows, outputs], in place."""
        for a, b in self.products:
            if a is None:
                y[rows].addmm_(x[rows], b)
                continue
            near = _window(rows, len(x))
            low = x[near] @ a
            before, end = rows.start - near.start, rows.stop - near.start
            if before:  # the window's other rows: adding 0 leaves them as they are
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
    """The weights a layer norm has under an adapter instead of its own."""

    weight: Tensor
    bias: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def _window(rows: slice, total: int) -> slice:
    """`rows` and some of their neighbours, a multiple of `WINDOW` where there are as many."""
    size = min(-(-(rows.stop - rows.start) // WINDOW) * WINDOW, total)
    start = min(rows.start, total - size)
    return slice(start, start + size)


Changes = Mapping[Any, Delta | Norm]  # layer → what is other there


@dataclass(frozen=True)
class Span:
    """The part of a batch that is under one adapter."""

    changes: Changes
    rows: slice
    sequences: slice  # in packed order


_batch: ContextVar[PackedBatch | None] = ContextVar("batch", default=None)


@contextmanager
def applied(batch: PackedBatch) -> Iterator[None]:
    """Layers called in here by this thread apply the adapters of `batch`, whose rows or sequences they are given."""
    before = _batch.set(batch if batch.spans else None)
    try:
        yield
    finally:
        _batch.reset(before)


def changes_of(layer: Any, rows: int) -> list[tuple[slice, Any]]:
    """What adapters change of `layer` for an input of `rows` rows: all rows of the batch, or one per sequence."""
    batch = _batch.get()
    if batch is None:
        return []
    spans = [span for span in batch.spans if layer in span.changes]
    if not spans:
        return []
    # a slot is longer than one row, so the two never agree
    assert rows in (batch.rows, batch.count), "a layer that adapters know by name is given other rows"
    whole = rows == batch.rows
    return [(span.rows if whole else span.sequences, span.changes[layer]) for span in spans]
