"""Attention within a sliding window: a token attends to tokens at most `reach` positions away, on both sides.

Short sequences are one dense block with a band mask. Long ones are cut into blocks of queries that attend to their own
block and `reach` keys on either side, so the cost is linear in the length; the values are the same. Masks are built
once per batch and shared by all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import Group, PackedBatch, Readout
from sie_server.models.layers.attention.varlen import FULL, over


class LocalAttention:
    """Attention with the window masks of one batch; called like `attention`, by every local layer."""

    def __init__(self, batch: PackedBatch, reach: int, dtype: torch.dtype) -> None:
        """Build the masks; `reach` is in tokens to either side, `dtype` that of queries and keys."""
        self._batch, self._reach, self._dtype = batch, reach, dtype
        self._block = max(32, 2 * reach)  # queries; a block has at most twice the necessary keys
        self._masks = [self._mask(group) for group in batch.masked]
        # the keys within reach of each sequence's first token
        self._near = None if batch.segments is None else batch.sizes.clamp(max=reach + 1)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, readout: Readout = "all") -> Tensor:
        """Return [query rows, heads * dim].

        `query`, `key` and `value` are [rows, heads, dim]. With a readout of one token, `query` is [sequences, heads,
        dim] of these tokens.
        """
        output_rows = self._batch.rows_of(readout)
        if self._batch.segments is None:
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        else:
            out = self._varlen(query, key, value, readout)
        for group, mask in zip(self._batch.masked, self._masks, strict=True):
            query_rows = group.rows if output_rows is None else group.sequences
            shape = (group.count, group.slot)
            q = query[query_rows].unflatten(0, shape if output_rows is None else (group.count, 1))
            k, v = (x[group.rows].unflatten(0, shape) for x in (key, value))
            if output_rows is not None:
                mixed = _attend(q, k, v, self._one_query_mask(group, output_rows))
            elif self._blocked(group):
                mixed = self._attend_in_blocks(q, k, v, mask)
            else:
                mixed = _attend(q, k, v, mask)
            out[query_rows] = mixed.flatten(0, 1)
        return out.flatten(1)

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, readout: Readout) -> Tensor:
        # one query counts as the last token of its sequence; the first token sees the first keys instead of a window
        first = readout == "first"
        window = FULL if first else (self._reach, self._reach)
        used = self._near if first else None
        return over(self._batch, query, key, value, one_row=readout != "all", window=window, used=used)

    def _blocked(self, group: Group) -> bool:
        # blocks copy keys and values; with a reach of 64 they are faster from 400 (fp32) or 700 (bf16) rows on a CPU
        return group.slot > 4 * self._block

    def _mask(self, group: Group) -> Tensor | None:
        """Return [count or 1, 1, slot, slot], or [count · blocks, 1, block, block + 2 · reach] of a blocked group."""
        if group.slot <= self._reach + 1:
            return group.mask  # every key is within reach
        device = self._batch.ids.device
        seen = _seen(group)
        if self._blocked(group):
            if seen is None:
                seen = torch.ones(group.count, group.slot, dtype=torch.bool, device=device)
            keys = self._windows(seen)  # [count, blocks, keys]
            distance = torch.arange(keys.shape[2], device=device) - self._reach
            distance = distance - torch.arange(self._block, device=device)[:, None]  # [block, keys]
            return self._additive(distance, keys.flatten(0, 1)[:, None, None, :])
        place = torch.arange(group.slot, device=device)
        return self._additive(place - place[:, None], None if seen is None else seen[:, None, None, :])

    def _additive(self, distance: Tensor, seen: Tensor | None) -> Tensor:
        near = distance.abs() <= self._reach
        if seen is not None:
            near = near & seen
            # a row without keys attends to itself: a softmax over nothing is NaN, which would spread to other rows
            near |= (distance == 0) & ~near.any(-1, keepdim=True)
        mask = torch.zeros(near.shape, dtype=self._dtype, device=near.device).masked_fill_(
            ~near, float("-inf")
        )
        return mask if mask.ndim == 4 else mask[None, None]

    def _one_query_mask(self, group: Group, output_rows: Tensor) -> Tensor:
        """Return the mask of the output rows, [count, 1, 1, slot]."""
        places = self._batch.positions[output_rows[group.sequences]]
        distance = torch.arange(group.slot, device=places.device) - places[:, None]
        seen = _seen(group)
        return self._additive(distance[:, None, None, :], None if seen is None else seen[:, None, None, :])

    def _windows(self, x: Tensor) -> Tensor:
        """Return the keys of each block of queries: [count, slot, …] → [count, blocks, …, block + 2 · reach]."""
        missing = -x.shape[1] % self._block
        padding = (0, 0) * (x.ndim - 2) + (self._reach, self._reach + missing)
        windows: Tensor = F.pad(x, padding).unfold(1, self._block + 2 * self._reach, self._block)
        return windows

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        count, slot = q.shape[:2]
        blocks = F.pad(q, (0, 0, 0, 0, 0, -slot % self._block)).unflatten(1, (-1, self._block)).flatten(0, 1)
        keys, values = (self._windows(x).movedim(-1, 2).flatten(0, 1) for x in (k, v))
        mixed = _attend(blocks, keys, values, mask)  # [count · blocks, block, heads, dim]
        rows: Tensor = mixed.unflatten(0, (count, -1)).flatten(1, 2)
        return rows[:, :slot]


def _seen(group: Group) -> Tensor | None:
    """Return the keys that are not masked, [count, slot] bool; None: all."""
    return None if group.mask is None else group.mask[:, 0, 0] == 0


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention of q, k and v, each [count, rows, heads, dim], in the shape of q."""
    mixed = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return mixed.transpose(1, 2)
