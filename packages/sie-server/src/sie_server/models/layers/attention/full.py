"""Full attention over a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import PackedBatch
from sie_server.models.layers.attention.varlen import over
from sie_server.models.layers.compiled import attention as compiled


def attention(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, *, one_row: bool = False
) -> Tensor:
    """Return the bidirectional attention of each sequence over its own tokens, [query rows, heads * dim].

    `key` and `value` are [rows, key heads, dim]. `query` is [rows, heads, dim], or with `one_row` [sequences, heads,
    dim]: the last layer of a model that is read out at one token. The number of heads is a multiple of the key heads
    (grouped queries). Tensors may have any strides: the groups of the batch are viewed, not copied.
    """
    if batch.segments is not None:
        used = None if batch.seen == batch.lengths else batch.keys
        return over(batch, query, key, value, one_row=one_row, used=used).flatten(1)
    if not one_row and compiled.serves(query, key, value, max(batch.slots)):
        return compiled.attention(query, key, value, batch.extents)
    grouped = query.shape[1] != key.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for group in batch.groups:
        query_rows = group.sequences if one_row else group.rows
        shape = (group.count, 1 if one_row else group.slot)
        q = query[query_rows].unflatten(0, shape).transpose(1, 2)  # [count, heads, 1 or slot, dim]
        k = key[group.rows].unflatten(0, (group.count, group.slot)).transpose(1, 2)
        v = value[group.rows].unflatten(0, (group.count, group.slot)).transpose(1, 2)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=group.mask, enable_gqa=grouped)
        out[query_rows].unflatten(0, shape).copy_(mixed.transpose(1, 2))
    return out.flatten(1)
