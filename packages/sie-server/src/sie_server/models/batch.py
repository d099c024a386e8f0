"""The inputs of one forward pass: packed sequences. `models.packing` builds them.

Rows are tokens. Each sequence occupies a *slot* of consecutive rows. On a CPU slots are rounded up to 16 rows, because
attention kernels take twice as long at lengths that are no multiple of 16 (measured: 105 rows 6.7 ms, 112 rows 3.5 ms
per 4,096 tokens). The up to 15 unused rows cost less in the products than copying into a padded layout and back. They
are masked as keys and never read. Sequences are sorted by length: equal slots are neighbours and form *groups*, each of
which attention computes as one dense block without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.models.lora import Span

Ids = npt.NDArray[np.int32]
Readout = Literal["first", "last", "all"]  # the tokens whose last hidden states a head reads
States = tuple[Tensor, Tensor]  # keys and values of one layer, each [rows, key heads, dim], rotated


@dataclass(frozen=True)
class Tokens:
    """One sequence: token ids, of token type 1 from `type_boundary` on (0 before).

    Tokens from `seen` on attend to the first `seen` tokens, and no token attends to them, not even themselves: the
    expansion of a ColBERT query. With None all tokens are attended to.
    """

    ids: Ids  # [length]
    type_boundary: int
    seen: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> int:
        """The number of tokens that are attended to."""
        return len(self.ids) if self.seen is None else self.seen


@dataclass(eq=False)
class Prefix:
    """The tokens that all sequences of a request begin with, and the keys and values computed from them."""

    ids: Ids
    layers: list[States] = field(default_factory=list)  # empty until the first batch of the request

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences with slots of one size and the same prefix, if any."""

    rows: slice  # of the batch
    sequences: slice  # in packed order
    count: int
    slot: int
    seen: tuple[int, ...]  # the number of tokens of each that are attended to: its first ones
    # [count, 1, 1, slot], 0 or -inf, added to the attention logits; None: all keys are attended to
    mask: Tensor | None
    valid: Tensor | None  # [count, slot] bool; None: all rows are tokens
    unseen: bool  # tokens of a sequence are not attended to
    prefix: Prefix | None = None  # precedes each sequence


@dataclass(frozen=True)
class Segments:
    """The sequences of a batch without slots: segment i has the query rows from `rows[i]` to `rows[i + 1]`.

    Its keys are the key rows from `keys[i]` to `keys[i + 1]`: its own rows, after those of its prefix. The sequences of
    the batch come first. After them, a prefix without states is a segment of its own, whose keys and values are
    computed with those of the sequences.
    """

    rows: Tensor  # [segments + 1] int32
    keys: Tensor  # [segments + 1] int32
    one_row: Tensor  # [sequences + 1] int32, 0, 1, 2 …: `rows` where each sequence has one query
    most_rows: int  # of a sequence
    most_keys: int
    # [key rows] int32: the row of the batch, or of a prefix in `known` after it, of each key; None: the same rows
    sources: Tensor | None
    known: tuple[Prefix, ...]  # whose states are appended to the keys and values of the batch
    kept: tuple[tuple[Prefix, slice], ...]  # rows of the prefixes whose states later passes need


@dataclass(frozen=True)
class Picked:
    """Single tokens of the sequences that a reader selects, sequence after sequence in packed order."""

    rows: Tensor  # [picked tokens] int32, of the batch
    bounds: Tensor  # [sequences + 1] int32, where those of each sequence begin
    ends: tuple[int, ...]  # `bounds` on the host

    def of(self, packed: int) -> slice:
        """Return the places in `rows` of the `packed`-th sequence's tokens."""
        return slice(self.ends[packed], self.ends[packed + 1])


@dataclass(frozen=True)
class PackedBatch:
    """Inputs of one forward pass. `order[p]` is the caller's index of the p-th packed sequence."""

    ids: Tensor  # [rows] int32
    positions: Tensor  # [rows] int32, counted from 0 in each sequence, or from the end of its prefix
    types: Tensor  # [rows] int32
    first_rows: Tensor  # [sequences] int32, the row of each sequence's first token
    last_rows: Tensor  # [sequences] int32, the row of each sequence's last token
    sizes: Tensor  # [sequences] int32, `lengths` on the device
    keys: Tensor  # [sequences] int32, `seen` on the device
    starts: tuple[int, ...]  # `first_rows` on the host
    lengths: tuple[int, ...]  # tokens of each packed sequence
    seen: tuple[int, ...]  # tokens of each that are attended to: its first ones
    slots: tuple[int, ...]  # rows of each
    prefixes: tuple[Prefix | None, ...]  # of each
    order: tuple[int, ...]
    spans: tuple[Span, ...]  # the parts of the batch with an adapter
    dtype: torch.dtype  # of the attention masks
    segments: Segments | None  # for varlen attention; None: attention is computed over `groups`
    depth: int | None = None  # layers to run; None: all
    picked: Picked | None = None

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def count(self) -> int:
        return len(self.order)

    @cached_property
    def extents(self) -> Tensor:
        """[3, sequences] int64 on the host: first row, rows, and the number of tokens that are attended to."""
        return torch.tensor([self.starts, self.slots, self.seen], dtype=torch.int64)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of the batch, in packed order. Their masks are built on the device at the first use."""
        alike = groupby(range(self.count), key=self._group_of)
        runs = [list(members) for _, members in alike]
        return tuple(self._group(slice(run[0], run[-1] + 1)) for run in runs)

    @cached_property
    def masked(self) -> tuple[Group, ...]:
        """The groups to which `segments` do not apply: all without segments, else those with unseen tokens.

        Varlen attention counts causality and windows from the last key that is attended to. It is the last token only
        where all tokens are.
        """
        if self.segments is None:
            return self.groups
        if self.seen == self.lengths:
            return ()
        return tuple(group for group in self.groups if group.unseen)

    def rows_of(self, readout: Readout) -> Tensor | None:
        """Return the rows of the read-out tokens, [sequences] int32; None when all rows are read."""
        return {"first": self.first_rows, "last": self.last_rows, "all": None}[readout]

    def _group_of(self, i: int) -> tuple[int, int, bool]:
        # without slots, sequences of one length are a group only if they are masked or not masked together
        apart = self.segments is not None and self.seen[i] != self.lengths[i]
        return self.slots[i], id(self.prefixes[i]), apart

    def _group(self, sequences: slice) -> Group:
        slot, seen = self.slots[sequences.start], self.seen[sequences]
        places = torch.arange(slot, dtype=torch.int32, device=self.ids.device)
        mask = valid = None
        if min(seen) != slot:
            unseen = places >= self.keys[sequences, None]
            mask = torch.zeros(unseen.shape, dtype=self.dtype, device=unseen.device)
            mask = mask.masked_fill_(unseen, float("-inf"))[:, None, None, :]
        if min(self.lengths[sequences]) != slot:
            valid = places < self.sizes[sequences, None]
        return Group(
            rows=slice(self.starts[sequences.start], self.starts[sequences.stop - 1] + slot),
            sequences=sequences,
            count=sequences.stop - sequences.start,
            slot=slot,
            seen=seen,
            mask=mask,
            valid=valid,
            unseen=seen != self.lengths[sequences],
            prefix=self.prefixes[sequences.start],
        )
