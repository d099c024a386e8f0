"""Rows of a batch → one row per sequence: the largest value or the sum over its tokens, in one call or per group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sie_server.models.batch import Group, PackedBatch


def largest(rows: Tensor, batch: PackedBatch) -> Tensor:
    """Return the largest value of each column over the tokens of each sequence, [rows, columns] → [sequences, columns].

    The result is in the dtype of `rows`.
    """
    if batch.segments is not None:
        return reduce_segments(rows, batch.segments.rows[: batch.count + 1], "max")
    return torch.cat([_masked(rows, group).amax(1) for group in batch.groups])


def total(rows: Tensor, batch: PackedBatch, weights: Tensor | None = None) -> Tensor:
    """Return the sum over the tokens of each sequence, [rows, columns] → [sequences, columns] fp32.

    `weights` is [rows] fp32; None: all are 1.
    """
    if batch.segments is not None:
        wide = rows.float() if weights is None else rows.float() * weights[:, None]
        return reduce_segments(wide, batch.segments.rows[: batch.count + 1], "sum")
    parts = []
    for group in batch.groups:
        block = rows[group.rows].unflatten(0, (group.count, group.slot)).float()
        own = None if weights is None else weights[group.rows].view(group.count, group.slot)
        if group.valid is not None:
            own = group.valid.float() if own is None else own * group.valid
        parts.append(block.sum(1) if own is None else (block * own[:, :, None]).sum(1))
    return torch.cat(parts)


def places(batch: PackedBatch) -> Tensor:
    """Return the place of every row in its sequence, counted from 0, [rows] int32 on the device."""
    device = batch.ids.device
    if batch.segments is None:
        parts = [
            torch.arange(group.slot, dtype=torch.int32, device=device).expand(group.count, -1)
            for group in batch.groups
        ]
        return torch.cat([part.flatten() for part in parts])
    rows = torch.arange(batch.rows, dtype=torch.int32, device=device)
    bounds = batch.segments.rows
    # with the size of the result given, nothing is read from the device
    starts: Tensor = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=batch.rows)
    return rows - starts


def reduce_segments(rows: Tensor, bounds: Tensor, how: Literal["max", "sum"]) -> Tensor:
    """Return [segments, columns] from [rows, columns]; `bounds` is [segments + 1] int32, ascending, on the device.

    Of an empty segment the largest value is -inf and the sum 0.
    """
    # "unsafe" leaves out a check of the bounds on the host
    result: Tensor = torch.segment_reduce(rows, how, offsets=bounds, axis=0, unsafe=True)
    return result


def _masked(rows: Tensor, group: Group) -> Tensor:
    block: Tensor = rows[group.rows].unflatten(0, (group.count, group.slot))
    return block if group.valid is None else block.masked_fill(~group.valid[:, :, None], float("-inf"))
