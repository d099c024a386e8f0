"""Causal attention over a packed batch whose sequences may share a prefix.

A *prefix* is the tokens that all sequences of one request begin with. It goes through the model once, as a separate
sequence: of the same batch with varlen attention, else of a batch before it. The request keeps its keys and values, and
the packed sequences hold only their remaining tokens. These attend
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
from sie_server.models.layers.attention.varlen import FULL, over

# The prefix is copied before the keys of every sequence; this number of key rows at a time limits the memory it takes.
KEY_ROWS = 16_384

Product = Callable[..., Tensor]  # called like scaled_dot_product_attention


@dataclass(frozen=True)
class _Block:
    """A group of the batch with its causal masks, which are the same for every layer."""

    group: Group
    all_rows: Tensor | None  # [1 or count, 1, slot, prefix + slot] 0 or -inf; None: plain causal, no prefix
    # [count, 1, 1, prefix + slot] 0 or -inf; None: the read-out token attends to every row
    one_row: Tensor | None
    prefix: list[States]  # per layer; empty: no prefix


class CausalAttention:
    """Attention of each row over its prefix, itself and earlier rows of its sequence, in one batch."""

    def __init__(self, batch: PackedBatch, dtype: torch.dtype, windows: tuple[int | None, ...] = ()) -> None:
        """Build the masks in the dtype of the queries.

        `windows` has one entry per layer, the number of rows that a row attends to, itself included; None: all earlier
        rows. Without entries no layer has a window.

        Raises:
            RuntimeError: a layer has a window and the batch a prefix; the window would not hold for the prefix.
        """
        if any(windows) and any(batch.prefixes):
            raise RuntimeError(
                "a batch with a shared prefix cannot run through layers with attention windows"
            )
        self._batch, self._windows = batch, windows
        self._blocks = [_block(group, dtype, batch.ids.device) for group in batch.masked]

    def __call__(
        self,
        query: Tensor,
        states: States,
        layer: int,
        product: Product = scaled_dot_product_attention,
        *,
        scale: float | None = None,
        one_row: bool = False,
    ) -> Tensor:
        """Return [query rows, heads * dim].

        `states` are keys and values of the batch's rows, [rows, key heads, dim]. `query` is [rows, heads, dim], or with
        `one_row` [sequences, heads, dim] of the last tokens. The number of heads is a multiple of the key heads
        (grouped queries). `product` replaces `scaled_dot_product_attention` where a family's attention differs;
        `scale` is its scale.
        """
        window = self._windows[layer] if self._windows else None
        if self._batch.segments is None:
            out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        else:
            out = self._varlen(query, states, layer, window, scale, one_row)
        for block in self._blocks:
            _fill(out, query, states, block, layer, window, product, one_row)
        return out.flatten(1)

    def _varlen(
        self,
        query: Tensor,
        states: States,
        layer: int,
        window: int | None,
        scale: float | None,
        one_row: bool,
    ) -> Tensor:
        segments = self._batch.segments
        if segments is not None and segments.sources is not None:
            states = _gathered(states, [p.layers[layer] for p in segments.known], segments.sources)
        before = -1 if window is None else window - 1
        # one query is the last token, for which nothing is later
        seen = FULL if one_row and window is None else (before, 0)
        return over(self._batch, query, *states, one_row=one_row, window=seen, scale=scale)


def _gathered(own: States, prefixes: list[States], sources: Tensor) -> States:
    """Return the keys and values of every segment, [key rows, key heads, dim], each after those of its prefix."""
    both = [torch.stack(states, dim=1) for states in (own, *prefixes)]
    keys, values = (torch.cat(both) if prefixes else both[0])[sources].unbind(1)
    return keys, values


def _block(group: Group, dtype: torch.dtype, device: torch.device) -> _Block:
    if group.prefix is None and not group.unseen:
        return _Block(group, None, group.mask, [])
    prefix, layers = (0, []) if group.prefix is None else (len(group.prefix), group.prefix.layers)
    later = torch.full((group.slot, group.slot), float("-inf"), dtype=dtype, device=device).triu(1)
    if group.mask is not None and group.unseen:
        later = later + group.mask
    all_rows = torch.nn.functional.pad(later, (prefix, 0))
    one_row = None if group.mask is None else torch.nn.functional.pad(group.mask, (prefix, 0))
    return _Block(group, all_rows if all_rows.ndim == 4 else all_rows[None, None], one_row, layers)


def _fill(
    out: Tensor,
    query: Tensor,
    states: States,
    block: _Block,
    layer: int,
    window: int | None,
    product: Product,
    one_row: bool,
) -> None:
    """Write the attention of a block's rows into `out`, [query rows, heads, dim]."""
    group = block.group
    query_rows = group.sequences if one_row else group.rows
    shape = (group.count, 1 if one_row else group.slot)
    q = query[query_rows].unflatten(0, shape).transpose(1, 2)  # [count, heads, 1 or slot, dim]
    k, v = (x[group.rows].unflatten(0, (group.count, group.slot)).transpose(1, 2) for x in states)
    target = out[query_rows].unflatten(0, shape)
    step = group.count if group.prefix is None else max(1, KEY_ROWS // (len(group.prefix) + group.slot))
    for start in range(0, group.count, step):
        part = slice(start, start + step)
        mixed = _attend(q[part], (k[part], v[part]), block, part, layer, window, one_row, product)
        target[part] = mixed.transpose(1, 2)


def _attend(
    q: Tensor,
    own: States,
    block: _Block,
    part: slice,
    layer: int,
    window: int | None,
    one_row: bool,
    product: Product,
) -> Tensor:  # [count, heads, 1 or slot, dim]
    if window and window < block.group.slot:
        if one_row:
            raise RuntimeError("a model whose layers have attention windows must be read out at all rows")
        return _attend_within(window, q, *own)
    k, v = _with_prefix(block.prefix[layer], own) if block.prefix else own
    mask = block.all_rows
    if mask is not None and len(mask) > 1:
        mask = mask[part]
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
