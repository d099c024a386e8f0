"""Packing, attention, pooling and MaxSim equal plain versions that process one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import PackedBatch, Tokens
from sie_server.models.heads.classifier import unit
from sie_server.models.heads.late_interaction import QueryVectors, weighted_maxsim
from sie_server.models.heads.pooling import pool
from sie_server.models.layers.attention.full import attention
from sie_server.models.packing import pack
from sie_server.models.spec import Pooling

CPU = torch.device("cpu")
# mode → its definition over one sequence, [tokens, hidden] → [hidden]
POOLED: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "cls": lambda own: own[0],
    "last": lambda own: own[-1],
    "max": lambda own: own.max(0).values,
    "mean": lambda own: own.mean(0),
    "mean_sqrt_len": lambda own: own.sum(0) / len(own) ** 0.5,
    "weightedmean": lambda own: sum(i * row for i, row in enumerate(own, 1)) / sum(range(1, len(own) + 1)),
}
LENGTHS = [5, 16, 1, 33, 16, 48, 17, 5, 100]


def packed(align: int, lengths: list[int] = LENGTHS) -> PackedBatch:
    sequences = [Tokens(np.arange(1, n + 1, dtype=np.int32) + 100 * i, n // 2) for i, n in enumerate(lengths)]
    return pack(sequences, pad_id=7, align=align, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("align", [1, 16])
def test_pack_lays_every_token_once(align: int) -> None:
    batch = packed(align)
    assert sorted(batch.order) == list(range(len(LENGTHS)))
    assert list(batch.lengths) == sorted(LENGTHS, reverse=True)
    used = np.zeros(batch.rows, bool)
    for place, start, length in zip(batch.order, batch.starts, batch.lengths, strict=True):
        rows = slice(start, start + length)
        assert batch.ids[rows].tolist() == [100 * place + t for t in range(1, length + 1)]
        assert batch.positions[rows].tolist() == list(range(length))
        assert batch.types[rows].tolist() == [0] * (length // 2) + [1] * (length - length // 2)
        assert not used[rows].any()
        used[rows] = True
    assert (batch.ids[~used] == 7).all()
    assert batch.rows - sum(LENGTHS) <= len(LENGTHS) * (align - 1)
    assert batch.first_rows.tolist() == list(batch.starts)


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("one_query", [False, True])
def test_attention_equals_one_sequence_at_a_time(align: int, one_query: bool) -> None:
    torch.manual_seed(0)
    batch = packed(align)
    qkv = torch.randn(batch.rows, 3, 4, 8)
    q, k, v = qkv.unbind(1)
    asked = q[batch.first_rows] if one_query else q
    ours = attention(asked, k, v, batch, one_row=one_query)
    assert ours.shape == (asked.shape[0], 32)
    for place, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        rows = slice(start, start + length)
        alone = [x[rows].transpose(0, 1)[None] for x in (q, k, v)]
        expected = scaled_dot_product_attention(*alone)[0].transpose(0, 1).flatten(1)
        mine = ours[place : place + 1] if one_query else ours[rows]
        torch.testing.assert_close(mine, expected[:1] if one_query else expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align", [1, 16])
@pytest.mark.parametrize("how", sorted(POOLED))
def test_pooling_sees_only_its_own_tokens(align: int, how: Pooling) -> None:
    batch = packed(align)
    hidden = torch.randn(batch.rows, 6, dtype=torch.bfloat16)
    pooled = pool(hidden, batch, (how, "cls"))
    assert pooled.dtype == torch.float32
    for place, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        own = hidden[start : start + length].float()
        torch.testing.assert_close(pooled[place], torch.cat((POOLED[how](own), own[0])))


@pytest.mark.parametrize("align", [1, 16])
def test_maxsim_equals_the_formula(align: int) -> None:
    batch = packed(align)
    tokens, query = unit(torch.randn(batch.rows, 6)), unit(torch.randn(4, 6))
    weights = torch.tensor([0.0, 1.0, 0.25, 3.0])
    own = QueryVectors.build(query[1:], weights[1:], weights.sum(), query[0], np.arange(1, 4))
    ours = weighted_maxsim(own, tokens, batch)
    for place, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
        best = (query @ tokens[start : start + length].T).amax(1)
        torch.testing.assert_close(ours[place], (weights * best).sum() / weights.sum())


def test_a_query_without_weight_matches_nothing() -> None:
    batch = packed(1)
    none = torch.zeros(0)
    query = QueryVectors.build(torch.ones(0, 6), none, none.sum(), torch.ones(6), np.arange(0))
    assert weighted_maxsim(query, torch.ones(batch.rows, 6), batch).tolist() == [0.0] * batch.count
