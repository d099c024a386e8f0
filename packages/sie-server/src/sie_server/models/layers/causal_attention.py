"""Causal attention over a packed batch whose sequences may share a prefix.

A *prefix* is the tokens that all sequences of one request begin with. It goes through the model once, as a separate
sequence; the request keeps its keys and values, and the packed sequences hold only their remaining tokens. These attend
to the prefix and to earlier tokens of their own sequence. Unused rows are at the end of a slot, so no token attends to
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import Group, PackedBatch, States

# The prefix is copied before the keys of every sequence; this number of key rows at a time limits the memory it takes.
KEY_ROWS = 16_384

Product = Callable[..., Tensor]  # called like scaled_dot_product_attention


@dataclass(frozen=True)
class CausalBlock:
    """A group of the batch with its causal masks, which are the same for every layer."""

    group: Group
    all_rows: Tensor | None  # [1, 1, slot, prefix + slot] 0 or -inf; None: plain causal, no prefix
    # [count, 1, 1, prefix + slot] 0 or -inf; None: the read-out token attends to every row
    one_row: Tensor | None
    prefix: list[States]  # per layer; empty: no prefix
    windows: tuple[int | None, ...] = ()  # per layer; empty: every row attends to all earlier rows

    def window(self, layer: int) -> int | None:
        """Return the number of rows that a row attends to in this layer, itself included; None: all earlier rows."""
        found = self.windows[layer] if self.windows else None
        return found if found and found < self.group.slot else None


def causal_blocks(
    batch: PackedBatch, dtype: torch.dtype, windows: tuple[int | None, ...] = ()
) -> list[CausalBlock]:
    """Build the masks of a batch in the dtype of the queries; `windows` is one entry per layer.

    Raises:
        RuntimeError: a layer has a window and the batch a prefix; the window would not hold for the prefix.
    """
    blocks = []
    for group in batch.groups:
        if group.prefix is None:
            blocks.append(CausalBlock(group, None, group.mask, [], windows))
            continue
        if any(windows):
            raise RuntimeError(
                "a batch with a shared prefix cannot run through layers with attention windows"
            )
        before, device = len(group.prefix), batch.ids.device
        later = torch.full((group.slot, group.slot), float("-inf"), dtype=dtype, device=device).triu(1)
        all_rows = torch.nn.functional.pad(later, (before, 0))[None, None]
        one_row = None if group.mask is None else torch.nn.functional.pad(group.mask, (before, 0))
        blocks.append(CausalBlock(group, all_rows, one_row, group.prefix.layers))
    return blocks


def causal_attention(
    query: Tensor,
    states: States,
    blocks: list[CausalBlock],
    layer: int,
    product: Product = scaled_dot_product_attention,
    *,
    one_row: bool = False,
) -> Tensor:
    """Return the attention of each row over its prefix, itself and earlier rows of its sequence, within the window.

    `states` are keys and values of the batch's rows, [rows, key heads, dim]. `query` is [rows, heads, dim], or with
    `one_row` [sequences, heads, dim] of the read-out tokens. The number of heads is a multiple of the key heads
    (grouped queries). `product` replaces `scaled_dot_product_attention` where a family's attention differs. The result
    is [query rows, heads * dim].
    """
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for block in blocks:
        group = block.group
        query_rows = group.sequences if one_row else group.rows
        shape = (group.count, 1 if one_row else group.slot)
        q = query[query_rows].unflatten(0, shape).transpose(1, 2)  # [count, heads, 1 or slot, dim]
        k, v = (x[group.rows].unflatten(0, (group.count, group.slot)).transpose(1, 2) for x in states)
        target = out[query_rows].unflatten(0, shape)
        step = group.count if group.prefix is None else max(1, KEY_ROWS // (len(group.prefix) + group.slot))
        for start in range(0, group.count, step):
            part = slice(start, start + step)
            mixed = _attend(q[part], (k[part], v[part]), block, part, layer, one_row, product)
            target[part] = mixed.transpose(1, 2)
    return out.flatten(1)


def _attend(
    q: Tensor, own: States, block: CausalBlock, part: slice, layer: int, one_row: bool, product: Product
) -> Tensor:  # [count, heads, 1 or slot, dim]
    if window := block.window(layer):
        if one_row:
            raise RuntimeError("a model whose layers have attention windows must be read out at all rows")
        return _attend_within(window, q, *own)
    k, v = _with_prefix(block.prefix[layer], own) if block.prefix else own
    mask = block.all_rows
    if one_row:
        mask = None if block.one_row is None else block.one_row[part]
    causal = not one_row and mask is None
    return product(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


def _attend_within(window: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention where each row attends to `window` rows, itself included.

    Each step computes `window` queries over at most twice the necessary keys, so the cost is linear in the length.
    """
    out, slot = torch.empty_like(q), q.shape[2]
    for start in range(0, slot, window):
        queries = slice(start, min(start + window, slot))
        keys = slice(max(0, start - window + 1), start + window)
        places = torch.arange(slot, device=q.device)
        distance = places[queries, None] - places[keys]
        out[:, :, queries] = scaled_dot_product_attention(
            q[:, :, queries],
            k[:, :, keys],
            v[:, :, keys],
            attn_mask=(distance >= 0) & (distance < window),
            enable_gqa=True,
        )
    return out


def _with_prefix(prefix: States, own: States) -> States:
    """Return the prefix's states followed by those of each sequence, [count, key heads, prefix + slot, dim]."""
    k, v = (
        torch.cat((before.transpose(0, 1).expand(len(after), -1, -1, -1), after), dim=2)
        for before, after in zip(prefix, own, strict=True)
    )
    return k, v
