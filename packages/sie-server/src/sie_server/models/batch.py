"""The inputs of one forward pass: packed sequences, built once on the host and copied to the device once.

Rows are tokens. Each sequence occupies a *slot* of consecutive rows. On a CPU slots are rounded up to 16 rows, because
attention kernels take twice as long at lengths that are no multiple of 16 (measured: 105 rows 6.7 ms, 112 rows 3.5 ms
per 4,096 tokens). The up to 15 unused rows cost less in the products than copying into a padded layout and back. They
are masked as keys and never read. Sequences are sorted by length: equal slots are neighbours and form *groups*, each of
which attention computes as one dense block without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sie_server.models.lora import Changes, Span

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
    prefix: Prefix | None = None  # precedes each sequence


@dataclass(frozen=True)
class PackedBatch:
    """Inputs of one forward pass. `order[p]` is the caller's index of the p-th packed sequence."""

    ids: Tensor  # [rows] int32
    positions: Tensor  # [rows] int32, counted from 0 in each sequence, or from the end of its prefix
    types: Tensor  # [rows] int32
    first_rows: Tensor  # [sequences] int64, the row of each sequence's first token
    last_rows: Tensor  # [sequences] int64, the row of each sequence's last token
    starts: tuple[int, ...]  # `first_rows` on the host
    lengths: tuple[int, ...]  # tokens of each packed sequence
    order: tuple[int, ...]
    groups: tuple[Group, ...]
    spans: tuple[Span, ...]  # the parts of the batch with an adapter
    depth: int | None = None  # layers to run; None: all

    @property
    def rows(self) -> int:
        return self.ids.shape[0]

    @property
    def count(self) -> int:
        return len(self.order)

    def rows_of(self, readout: Readout) -> Tensor | None:
        """Return the rows of the read-out tokens, [sequences] int64; None when all rows are read."""
        return {"first": self.first_rows, "last": self.last_rows, "all": None}[readout]


def slot_rows(length: int, align: int) -> int:
    """Return the number of rows that a sequence of `length` tokens occupies."""
    return -(-length // align) * align


def pack(
    sequences: Sequence[Tokens],
    *,
    pad_id: int,
    align: int,
    device: torch.device,
    dtype: torch.dtype,
    skip_id: int | None = None,
    prefixes: Sequence[Prefix | None] = (),
    depth: int | None = None,
    adapters: Sequence[Changes | None] = (),
) -> PackedBatch:
    """Pack `sequences`, the longest first; `dtype` is that of the attention mask.

    Tokens `skip_id` are not counted as positions and have position -1. `prefixes` and `adapters`, if given, have one
    entry per sequence. Sequences with the same adapter are neighbours, and among these the ones with the same prefix.
    """
    prefix_of = list(prefixes) or [None] * len(sequences)
    changes = list(adapters) or [None] * len(sequences)
    places = {id(thing): place for place, thing in enumerate((*prefixes, *adapters))}
    order = sorted(
        range(len(sequences)),
        key=lambda i: (
            places.get(id(changes[i]), 0),
            places.get(id(prefix_of[i]), 0),
            -len(sequences[i]),
        ),
    )
    lengths = [len(sequences[i]) for i in order]
    seen = [sequences[i].keys for i in order]
    slots = [slot_rows(n, align) for n in lengths]
    starts = np.concatenate(([0], np.cumsum(slots))).tolist()
    table = np.zeros((3, starts[-1]), dtype=np.int32)  # ids, positions, types
    table[0] = pad_id
    for start, length, index in zip(starts, lengths, order, strict=False):
        tokens, end = sequences[index], start + length
        table[0, start:end] = tokens.ids
        table[1, start:end] = _positions(tokens.ids, skip_id) + len(prefix_of[index] or ())
        table[2, start + tokens.type_boundary : end] = 1
    on_device = torch.from_numpy(table).to(device)
    first = np.array(starts[:-1], dtype=np.int64)
    ends = torch.from_numpy(np.stack((first, first + lengths - 1))).to(device)
    return PackedBatch(
        ids=on_device[0],
        positions=on_device[1],
        types=on_device[2],
        first_rows=ends[0],
        last_rows=ends[1],
        starts=tuple(starts[:-1]),
        lengths=tuple(lengths),
        order=tuple(order),
        groups=_groups(lengths, seen, slots, starts, [prefix_of[i] for i in order], device, dtype),
        depth=depth,
        spans=_spans([changes[i] for i in order], starts),
    )


def _spans(adapters: list[Changes | None], starts: list[int]) -> tuple[Span, ...]:
    """Return the spans of a batch; the last entry of `starts` is the end of the last sequence."""
    spans = []
    for _, members in groupby(range(len(adapters)), key=lambda i: id(adapters[i])):
        indices = list(members)
        first, end, changes = indices[0], indices[-1] + 1, adapters[indices[0]]
        if changes is not None:
            spans.append(Span(changes, slice(starts[first], starts[end]), slice(first, end)))
    return tuple(spans)


def _positions(ids: Ids, skipped: int | None) -> npt.NDArray[np.int64]:
    """Return the positions from 0; tokens `skipped` are not counted and have position -1."""
    if skipped is None:
        return np.arange(len(ids))
    counted = ids != skipped
    return np.where(counted, np.cumsum(counted) - 1, -1)


def _groups(
    lengths: list[int],
    seen: list[int],
    slots: list[int],
    starts: list[int],
    prefixes: list[Prefix | None],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Group, ...]:
    groups = []
    for (slot, _), members in groupby(range(len(slots)), key=lambda i: (slots[i], id(prefixes[i]))):
        indices = list(members)
        first, last = indices[0], indices[-1]
        mask = valid = None
        if any(seen[i] != slot for i in indices):
            keys = _first_of(slot, [seen[i] for i in indices])
            mask_host = torch.zeros(keys.shape, dtype=dtype).masked_fill_(~keys, float("-inf"))
            mask = mask_host[:, None, None, :].to(device)
        if any(lengths[i] != slot for i in indices):
            valid = _first_of(slot, [lengths[i] for i in indices]).to(device)
        groups.append(
            Group(
                rows=slice(starts[first], starts[last] + slot),
                sequences=slice(first, last + 1),
                count=len(indices),
                slot=slot,
                seen=tuple(seen[i] for i in indices),
                mask=mask,
                valid=valid,
                prefix=prefixes[first],
            )
        )
    return tuple(groups)


def _first_of(slot: int, counts: list[int]) -> Tensor:
    """Return [sequences, slot] bool, True for the first `counts[i]` entries of row i."""
    return torch.arange(slot)[None, :] < torch.tensor(counts)[:, None]
