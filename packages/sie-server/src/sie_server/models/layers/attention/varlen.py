"""Attention over sequences of any length that lie one after the other, without padding and without masks.

On a GPU it is FlashAttention 2 inside torch (`flash`); elsewhere a loop over the sequences in plain torch
(`reference`). Both take the same arguments and return the same values, so the layout of a GPU is tested on a CPU.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sie_server.models.batch import PackedBatch
from sie_server.models.layers.attention import flash
from sie_server.models.layers.attention.reference import reference

Window = tuple[int, int]  # tokens that a query attends to before and after its own place; -1: all of them
FULL: Window = (-1, -1)


class Varlen(Protocol):
    """Attention of query sequences to key sequences; sequence i of one attends to sequence i of the other.

    `query` is [query rows, heads, dim], `key` and `value` are [key rows, key heads, dim]; the number of heads is a
    multiple of the key heads. `cu_q` and `cu_k` are [sequences + 1] int32: the row where each sequence begins, and the
    end. No sequence has more than `most_q` queries and `most_k` keys. `used` is [sequences] int32: the keys of each
    that are attended to, its first ones; None: all.

    The last query of a sequence is at the place of its last used key, and the others are before it. `window` counts
    from these places: (-1, 0) is causal. A query without keys gets zeros. `scale` multiplies the products of queries
    and keys; None: 1 / √dim. The result is [query rows, heads, dim].
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        most_q: int,
        most_k: int,
        *,
        window: Window = FULL,
        scale: float | None = None,
        used: Tensor | None = None,
    ) -> Tensor: ...


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    most_q: int,
    most_k: int,
    *,
    window: Window = FULL,
    scale: float | None = None,
    used: Tensor | None = None,
) -> Tensor:
    """See `Varlen`; on a GPU `flash.kernel` computes it, elsewhere `reference`."""
    compute = flash.kernel() if query.is_cuda else reference
    if compute is None:
        raise RuntimeError(
            "this torch has no variable-length attention; `attention.choice` should have chosen dense blocks"
        )
    return compute(query, key, value, cu_q, cu_k, most_q, most_k, window=window, scale=scale, used=used)


def over(
    batch: PackedBatch,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    one_row: bool,
    window: Window = FULL,
    scale: float | None = None,
    used: Tensor | None = None,
) -> Tensor:
    """Return the attention of a batch laid out in `segments`, [query rows, heads, dim].

    `key` and `value` are [key rows of the segments, key heads, dim]. With `one_row` the queries are one per sequence.
    """
    own = batch.segments
    if own is None:
        raise RuntimeError("variable-length attention needs a batch laid out in segments")
    if one_row:
        cu_q, cu_k, most_q = own.one_row, own.keys[: batch.count + 1], 1
    else:
        cu_q, cu_k, most_q = own.rows, own.keys, own.most_rows
    return varlen(query, key, value, cu_q, cu_k, most_q, own.most_keys, window=window, scale=scale, used=used)
