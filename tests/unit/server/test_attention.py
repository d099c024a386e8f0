"""Varlen attention equals plain attention of one sequence at a time, and is chosen only where a kernel computes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.batch import PackedBatch, Prefix, Tokens
from sie_server.models.layers.attention import flash
from sie_server.models.layers.attention.causal import CausalAttention
from sie_server.models.layers.attention.choice import choose
from sie_server.models.layers.attention.full import attention
from sie_server.models.layers.attention.local import LocalAttention
from sie_server.models.layers.attention.reference import reference
from sie_server.models.packing import pack
from sie_server.models.registry import ARCHITECTURES
from sie_server.models.spec import AttentionNeeds
from support.docs.attention import attention_by_architecture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS = AttentionNeeds(head_dim=64)
H100 = (9, 0)


@st.composite
def mixes(draw: st.DrawFn) -> list[Tokens]:
    """Return sequences of 0 to 30 tokens, many of them of one or none, some with tokens that are not attended to."""
    found = []
    for length in draw(st.lists(st.one_of(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=9)):
        seen = draw(st.one_of(st.none(), st.integers(min(1, length), length)))
        found.append(Tokens(np.zeros(length, np.int32), length, seen))
    return found


def packed(tokens: list[Tokens], *, varlen: bool = True, **more: Any) -> PackedBatch:
    align = 1 if varlen else 16
    return pack(tokens, pad_id=0, align=align, varlen=varlen, device=CPU, dtype=torch.float32, **more)


def alone(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Return the attention of one sequence, [queries, heads * dim]; `allowed` is [queries, keys] bool."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    return mixed[0].transpose(0, 1).flatten(1)


def random_heads(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(rows, 4, 8), torch.randn(rows, 2, 8), torch.randn(rows, 2, 8)


@settings(max_examples=40, deadline=None)
@given(mixes(), st.sampled_from(["full", "causal", "near", "window"]))
def test_every_mask_equals_one_sequence_at_a_time(tokens: list[Tokens], kind: str) -> None:
    """Sequences of any length, also empty ones; a token that is not attended to is no key of any other one."""
    batch = packed(tokens)
    q, k, v = random_heads(batch.rows)
    if kind == "full":
        ours = attention(q, k, v, batch)
    elif kind == "near":
        wide = (x.repeat_interleave(2, 1) for x in (k, v))
        ours = LocalAttention(batch, 3, torch.float32)(q, *wide)
    elif kind == "window" and batch.seen != batch.lengths:
        return  # listwise rerankers, which have windows, attend to all tokens
    else:
        windows = (5,) if kind == "window" else ()
        ours = CausalAttention(batch, torch.float32, windows)(q, (k, v), 0)
    for start, length, seen in zip(batch.starts, batch.lengths, batch.seen, strict=True):
        rows, place = slice(start, start + length), torch.arange(length)
        offset = place[None] - place[:, None]
        allowed = (place < seen).expand(length, length)
        if kind != "full":
            allowed = allowed & (offset.abs() <= 3 if kind == "near" else offset <= 0)
        if kind == "window":
            allowed = allowed & (offset > -5)
        allowed = allowed | ((offset == 0) & ~allowed.any(-1, keepdim=True))
        if length:
            expected = alone(q[rows], k[rows], v[rows], allowed)
            torch.testing.assert_close(ours[rows], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("readout", ["first", "last"])
@pytest.mark.parametrize("kind", ["full", "near", "causal"])
def test_one_query_of_each_sequence(kind: str, readout: Any) -> None:
    """The last layer computes one token of each sequence, with the value that it has among all tokens."""
    if (kind, readout) == ("causal", "first"):
        return  # the decoder computes all rows
    tokens = [
        Tokens(np.zeros(n, np.int32), n, s) for n, s in ((9, None), (1, None), (30, None), (9, 4), (5, None))
    ]
    batch = packed(tokens)
    q, k, v = random_heads(batch.rows)
    rows = batch.rows_of(readout)
    if kind == "full":
        ours, whole = (attention(x, k, v, batch, one_row=len(x) != len(q)) for x in (q[rows], q))
    elif kind == "near":
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        local = LocalAttention(batch, 3, torch.float32)
        ours, whole = local(q[rows], k, v, readout), local(q, k, v)
    else:
        causal = CausalAttention(batch, torch.float32)
        ours, whole = causal(q[rows], (k, v), 0, one_row=True), causal(q, (k, v), 0)
    torch.testing.assert_close(ours, whole[rows])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=8),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.booleans(),
)
def test_a_prefix_precedes_its_own_sequences(
    mix: list[tuple[int, int]], sizes: list[int], one_row: bool
) -> None:
    """Varlen and dense blocks give the same attention over shared prefixes, of which one is none."""
    prefixes: list[Prefix | None] = [None]
    for size in sizes[1:]:
        torch.manual_seed(size)
        states = (torch.randn(size, 2, 8), torch.randn(size, 2, 8))
        prefixes.append(Prefix(np.zeros(size, np.int32), [states]))
    tokens = [Tokens(np.zeros(n, np.int32), n) for n, _ in mix]
    own = [prefixes[i] for _, i in mix]
    results = []
    for varlen in (True, False):
        batch = packed(tokens, varlen=varlen, prefixes=own)
        place = torch.cat([torch.arange(s, s + n) for s, n in zip(batch.starts, batch.lengths, strict=True)])
        q, k, v = (torch.zeros(batch.rows, *x.shape[1:]) for x in random_heads(1))
        q[place], k[place], v[place] = random_heads(len(place))
        asked = q[batch.last_rows] if one_row else q
        mixed = CausalAttention(batch, torch.float32)(asked, (k, v), 0, one_row=one_row)
        results.append(mixed if one_row else mixed[place])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(mixes())
def test_boundaries_cover_every_row_once(tokens: list[Tokens]) -> None:
    batch = packed(tokens)
    segments = batch.segments
    assert segments is not None
    bounds = segments.rows.tolist()
    assert bounds == segments.keys.tolist() == [*batch.starts, batch.rows]
    assert segments.one_row.tolist() == list(range(batch.count + 1))
    assert segments.most_rows == segments.most_keys == max(batch.lengths)
    assert segments.rows.dtype == segments.keys.dtype == segments.one_row.dtype == torch.int32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cu_q": [0, 3, 9]}, "at most 8 rows"),
        ({"cu_q": [0, 5, 4, 8]}, "ascending"),
        ({"cu_q": [1, 3, 8]}, "from 0"),
        ({"most_q": 4}, "5 rows; the largest was said to have 4"),
        ({"most_k": 4}, "5 rows; the largest was said to have 4"),
        ({"cu_k": [0, 8]}, "expected as many"),
        ({"used": [4, 5]}, r"used\[0\] is 4, more than its 3 keys"),
    ],
)
def test_wrong_boundaries_are_reported(changed: dict[str, Any], message: str) -> None:
    """A kernel would leave rows out or read those of others."""
    q, k, v = random_heads(8)
    given: dict[str, Any] = {
        "cu_q": [0, 3, 8],
        "cu_k": [0, 3, 8],
        "most_q": 5,
        "most_k": 8 if "cu_k" in changed else 5,
    }
    given |= changed
    made = {name: torch.tensor(x) if isinstance(x, list) else x for name, x in given.items()}
    with pytest.raises(ValueError, match=message):
        reference(q, k, v, **made)


def test_the_operator_of_this_torch_has_the_arguments() -> None:
    """The same as on a GPU, because schemas are part of every build."""
    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    assert flash.accepts(arguments)
    assert not flash.accepts(arguments[1:])
    assert not flash.accepts([one for one in arguments if one.name != "seqused_k"])
    assert flash.kernel() is flash._call_private
    assert flash._public() is not None


@pytest.mark.parametrize("which", ["private", "public"])
def test_the_kernel_takes_the_arguments(which: str) -> None:
    """With tensors that have a device and a shape but no values; an argument of a wrong kind would raise."""
    kernel: Any = flash._call_private if which == "private" else flash._public()
    with FakeTensorMode():
        q, k = (torch.empty(20, heads, 64, dtype=torch.bfloat16, device="cuda") for heads in (8, 2))
        cu, keys = (torch.empty(n, dtype=torch.int32, device="cuda") for n in (4, 3))
        for window, used in (((-1, -1), None), ((-1, 0), None), ((4, 4), None), ((-1, -1), keys)):
            out = kernel(q, k, k, cu, cu, 9, 9, window=window, scale=0.1, used=used)
            assert (out.shape, out.device.type, out.dtype) == (q.shape, "cuda", torch.bfloat16)


def test_a_kernel_with_other_values_is_recognised() -> None:
    assert flash.differences(reference, CPU, torch.float16) == []

    def aligned_left(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, *rest: Any, **named: Any) -> Tensor:
        """Ignore the window."""
        return reference(q, k, v, cu_q, *rest, **{**named, "window": (-1, -1)})

    assert flash.differences(aligned_left, CPU, torch.float16) == [
        "causal",
        "window",
        "causal window",
        "prefix",
    ]

    def all_keys(*args: Any, used: Any = None, **named: Any) -> Tensor:
        return reference(*args, **named)

    assert flash.differences(all_keys, CPU, torch.float16) == ["used keys"]


@pytest.mark.parametrize(
    ("needs", "device", "dtype", "capability", "expected"),
    [
        (NEEDS, CPU, torch.bfloat16, None, ("dense", 16, "CPU")),
        (NEEDS, CUDA, torch.bfloat16, H100, ("varlen", 1, "FlashAttention")),
        (NEEDS, CUDA, torch.float16, (8, 0), ("varlen", 1, "FlashAttention")),
        (NEEDS, CUDA, torch.float16, (7, 5), ("dense", 64, "capability 7.5")),
        (NEEDS, CUDA, torch.float32, H100, ("dense", 64, "fp16 and bf16")),
        (replace(NEEDS, head_dim=260), CUDA, torch.float16, H100, ("dense", 64, "260 dimensions")),
        (replace(NEEDS, head_dim=36), CUDA, torch.float16, H100, ("dense", 64, "36 dimensions")),
        (replace(NEEDS, dense="ALiBi"), CUDA, torch.float16, H100, ("dense", 64, "ALiBi")),
    ],
)
def test_the_choice(
    needs: Any, device: Any, dtype: Any, capability: Any, expected: tuple[str, int, str]
) -> None:
    found = choose(needs, device, dtype, capability)
    assert (found.kind, found.align) == expected[:2]
    assert expected[2] in found.why


def test_without_a_kernel_blocks_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "kernel", lambda: None)
    found = choose(NEEDS, CUDA, torch.bfloat16, H100)
    assert found.kind == "dense" and "no varlen kernel" in found.why


def test_the_page_has_every_architecture() -> None:
    """`tests/parity/test_every_family.py` compares the columns with the choice for real specs."""
    assert attention_by_architecture().keys() == {*ARCHITECTURES, "all others"}
