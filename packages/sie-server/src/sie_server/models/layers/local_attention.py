"""Attention within a sliding window: a token sees those at most `reach` positions away, on both sides.

Short sequences are one dense block under a band mask. Long ones are cut into blocks of queries that see their own block
and `reach` keys on either side, so the cost is linear in the length; the values are the same. Masks are built once per
batch and shared by all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import Group, PackedBatch


class LocalAttention:
    """The window of one batch; called as `attention` is, by every layer that is local."""

    def __init__(self, batch: PackedBatch, reach: int, dtype: torch.dtype) -> None:
        """`reach`: tokens to either side; `dtype`: of queries and keys."""
        self._batch, self._reach, self._dtype = batch, reach, dtype
        self._block = max(32, 2 * reach)  # queries; each then sees at most twice as many keys as it has to
        self._masks = [self._mask(group) for group in batch.groups]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, asking: Tensor | None = None) -> Tensor:
        """`key` and `value` are [rows, heads, dim], `query` the same.

        With `asking`, rows one per sequence, `query` is [sequences, heads, dim] of those rows.
        Returns [query rows, heads * dim].
        """
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group, mask in zip(self._batch.groups, self._masks, strict=True):
            asked = group.rows if asking is None else group.sequences
            shape = (group.count, group.slot)
            q = query[asked].unflatten(0, shape if asking is None else (group.count, 1))
            k, v = (x[group.rows].unflatten(0, shape) for x in (key, value))
            if asking is not None:
                mixed = _attend(q, k, v, self._one_query_mask(group, asking))
            elif self._blocked(group):
                mixed = self._attend_in_blocks(q, k, v, mask)
            else:
                mixed = _attend(q, k, v, mask)
            out[asked] = mixed.flatten(0, 1)
        return out.flatten(1)

    def _blocked(self, group: Group) -> bool:
        # blocks copy keys and values; with a reach of 64 that pays from about 400 (fp32) to 700 (bf16) rows on a CPU
        return group.slot > 4 * self._block

    def _mask(self, group: Group) -> Tensor | None:
        """[count or 1, 1, slot, slot], or [count · blocks, 1, block, block + 2 · reach] of a blocked group."""
        if group.slot <= self._reach + 1:
            return group.mask  # everything is in reach
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
            # a row that would see nothing sees itself: a softmax over nothing would be NaN, and spread from there
            near |= (distance == 0) & ~near.any(-1, keepdim=True)
        mask = torch.zeros(near.shape, dtype=self._dtype, device=near.device).masked_fill_(
            ~near, float("-inf")
        )
        return mask if mask.ndim == 4 else mask[None, None]

    def _one_query_mask(self, group: Group, asking: Tensor) -> Tensor:
        """[count, 1, 1, slot]"""
        places = self._batch.positions[asking[group.sequences]]
        distance = torch.arange(group.slot, device=places.device) - places[:, None]
        seen = _seen(group)
        return self._additive(distance[:, None, None, :], None if seen is None else seen[:, None, None, :])

    def _windows(self, x: Tensor) -> Tensor:
        """[count, slot, …] → [count, blocks, …, block + 2 · reach]: the keys of each block of queries."""
        spare = -x.shape[1] % self._block
        padding = (0, 0) * (x.ndim - 2) + (self._reach, self._reach + spare)
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
    """[count, slot] bool: the keys that are seen at all; None: all."""
    return None if group.mask is None else group.mask[:, 0, 0] == 0


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[count, rows, heads, dim] → the same of q."""
    mixed = scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    return mixed.transpose(1, 2)
