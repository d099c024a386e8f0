"""Attention with a bias that depends on the distance of two tokens: ALiBi, and MPNet's relative positions.

ALiBi (Press et al., 2022, https://arxiv.org/abs/2108.12409) decreases attention with distance. Encoders use the
symmetric form (JinaBERT, Günther et al., 2023, https://arxiv.org/abs/2310.19923): slope · |i − j| is subtracted from
every attention logit; each head has its own slope. MPNet (Song et al., 2020, https://arxiv.org/abs/2004.09297) adds a
learned number for each range of distances, as T5 does (Raffel et al., 2020, https://arxiv.org/abs/1910.10683, 2.1).

The bias is built once per batch and shared by all layers. For long sequences, where it would not fit in memory, it is
built for a block of queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import Group, PackedBatch

KEPT = 512  # rows of a slot; up to this size a batch of 4,096 tokens keeps 2 million numbers per head at most
BLOCK = 256  # queries at a time in larger slots
FAR = 128  # tokens; all larger distances are in the last range of relative positions
# key place − query place, any shape → bias of every head, [heads, *shape] fp32
Bias = Callable[[Tensor], Tensor]


def head_slopes(heads: int) -> list[float]:
    """Return one slope per head, as published: 2^(−8/n), 2^(−16/n) … where n is a power of two.

    With another number of heads, n is the next lower power of two, and the remaining heads take every other slope of
    a model with 2n heads.
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    return first + [2.0 ** (-8 * i / (2 * power)) for i in range(1, 2 * (heads - power), 2)]


def alibi(slopes: Tensor) -> Bias:
    """Return the bias of ALiBi; `slopes` is [heads] fp32."""
    return lambda offsets: offsets.abs() * -slopes.view(-1, *[1] * offsets.ndim)


def relative(table: Tensor) -> Bias:
    """Return the bias of relative positions; `table` is [ranges, heads]: half of the ranges for keys after the query.

    Half of each half is one distance per range. The others grow logarithmically up to `FAR` tokens.
    """
    offsets = torch.arange(-FAR, FAR + 1)
    half = len(table) // 2
    exact, distance = half // 2, offsets.abs()
    grown = torch.log(distance.clamp(min=1).float() / exact) / math.log(FAR / exact) * (half - exact)
    ranges = torch.where(distance < exact, distance, (exact + grown.long()).clamp(max=half - 1))
    ranges += half * (offsets > 0)
    by_offset = table.float()[ranges.to(table.device)].T.contiguous()  # [heads, 2 · FAR + 1]
    return lambda offsets: by_offset[:, offsets.clamp(-FAR, FAR) + FAR]


class BiasedAttention:
    """Attention with the bias of one batch; called like `attention`."""

    def __init__(
        self, batch: PackedBatch, bias: Bias, output_rows: Tensor | None, dtype: torch.dtype
    ) -> None:
        """Build the biases of short sequences.

        `output_rows` are the query rows of the last layer; None: all rows. `dtype` is that of the queries.
        """
        self._batch, self._of = batch, bias
        self._output_rows, self._dtype = output_rows, dtype
        self._longest = max(group.slot for group in batch.groups)
        self._places = torch.arange(self._longest, device=batch.ids.device)
        self._kept = [
            self._bias(group, self._places[None, : group.slot]) if group.slot <= KEPT else None
            for group in batch.groups
        ]
        self._band = self._distances() if self._longest > KEPT else None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, one_row: bool = False) -> Tensor:
        """Return [query rows, heads * dim].

        `key` and `value` are [rows, heads, dim]. `query` is the same, or with `one_row` [sequences, heads, dim] of the
        output rows.
        """
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group, bias in zip(self._batch.groups, self._kept, strict=True):
            query_rows = group.sequences if one_row else group.rows
            shape = (group.count, 1 if one_row else group.slot)
            q = query[query_rows].unflatten(0, shape).transpose(1, 2)  # [count, heads, 1 or slot, dim]
            k, v = (
                x[group.rows].unflatten(0, (group.count, group.slot)).transpose(1, 2) for x in (key, value)
            )
            into = out[query_rows].unflatten(0, shape).transpose(1, 2)
            if one_row:
                bias = self._bias(group, self._output_places(group))
            if bias is None:
                self._attend_in_blocks(group, q, k, v, into)
            else:
                into.copy_(scaled_dot_product_attention(q, k, v, attn_mask=bias))
        return out.flatten(1)

    def _attend_in_blocks(self, group: Group, q: Tensor, k: Tensor, v: Tensor, into: Tensor) -> None:
        """Compute long sequences one after the other, without their masked keys, so no mask has to be added."""
        assert self._band is not None
        for i, seen in enumerate(group.seen):
            one, keys = slice(i, i + 1), slice(seen)
            for start in range(0, group.slot, BLOCK):
                rows = slice(start, min(start + BLOCK, group.slot))
                first = self._longest - start
                bias = self._band[:, : rows.stop - start, first : first + seen]
                into[one, :, rows] = scaled_dot_product_attention(
                    q[one, :, rows], k[one, :, keys], v[one, :, keys], attn_mask=bias[None]
                )

    def _distances(self) -> Tensor:
        """Return a bias [heads, block, 2 · longest]; that of each block of queries is a slice along the last axis."""
        keys = torch.arange(2 * self._longest, device=self._places.device) - self._longest
        return self._of(keys - self._places[:BLOCK, None]).to(self._dtype)

    def _bias(self, group: Group, places: Tensor) -> Tensor:
        """Return [count or 1, heads, queries, slot] for queries at `places`, [count or 1, queries]."""
        bias = self._of(self._places[: group.slot] - places[..., None]).transpose(0, 1)
        return (bias if group.mask is None else bias + group.mask).to(self._dtype)

    def _output_places(self, group: Group) -> Tensor:
        """Return [count, 1]: the position of each output row in its sequence."""
        assert self._output_rows is not None
        return self._batch.positions[self._output_rows[group.sequences]][:, None]
