"""Attention over packed sequences of bf16, one head of a sequence at a time."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sie_server.models.layers.compiled.library import finish, has_instructions, library, passes

LARGEST_HEAD, HEAD_STEP = 256, 16
LONGEST = 4096  # rows of a sequence; keys and values of longer ones do not stay in a core's cache
TOLERANCE = 2**-6  # absolute, of means of values of about 1


class _Task(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "y", "starts", "slots", "seen")),
        *((name, ctypes.c_int64) for name in ("count", "heads", "dim", "longest")),
        *((name, ctypes.c_int64) for name in ("q_stride", "k_stride", "v_stride")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


def serves(query: Tensor, key: Tensor, value: Tensor, longest: int) -> bool:
    """Return whether `attention` takes these tensors, and the machine has it."""
    dim = query.shape[2]
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and key.shape == query.shape
        and dim % HEAD_STEP == 0
        and dim <= LARGEST_HEAD
        and longest <= LONGEST
        and all(_in_place(each) for each in (query, key, value))
        and usable()
    )


def _in_place(x: Tensor) -> bool:
    """Return whether a row's heads lie next to each other, and its pairs of numbers at multiples of 4 bytes."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2] and x.stride(0) % 2 == 0 and x.data_ptr() % 4 == 0


def attention(
    query: Tensor, key: Tensor, value: Tensor, extents: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return [rows, heads * dim] of queries, keys and values [rows, heads, dim].

    `extents` is [3, sequences] int64: the first row of each sequence, its rows, and how many of them are attended to.
    """
    rows, heads, dim = query.shape
    if out is None:
        out = torch.empty(rows, heads * dim, dtype=query.dtype)
    starts, slots, seen = (part.data_ptr() for part in extents)
    task = _Task(
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        out.data_ptr(),
        starts,
        slots,
        seen,
        extents.shape[1],
        heads,
        dim,
        int(extents[1].max()),
        query.stride(0),
        key.stride(0),
        value.stride(0),
        dim**-0.5,
        torch.get_num_threads(),
    )
    found = library()
    assert found is not None  # `serves` has said so
    finish(found.sie_attention(ctypes.byref(task)))
    return out


@cache
def usable() -> bool:
    """Return whether the library is installed, this CPU can run its attention, and the results are right."""
    if library() is None or not has_instructions("avx512_f", "avx512_bw", "avx512_bf16"):
        return False
    return passes("attention", _difference)


def _difference() -> str | None:
    """Compare with torch's attention in fp32, over lengths around the sizes of the tiles."""
    generator, slots = torch.Generator().manual_seed(0), [16, 48, 112]
    seen, starts = [1, 37, 112], [0, 16, 64]
    qkv = torch.randn(sum(slots), 3, 2, 48, generator=generator).bfloat16()
    # memory that is used again may hold right results of an earlier call
    out = torch.full((sum(slots), 2 * 48), torch.nan, dtype=torch.bfloat16)
    found = attention(qkv[:, 0], qkv[:, 1], qkv[:, 2], torch.tensor([starts, slots, seen]), out)
    for start, slot, keys in zip(starts, slots, seen, strict=True):
        q, k, v = qkv[start : start + slot].float().permute(1, 2, 0, 3)
        exact = scaled_dot_product_attention(q, k[:, :keys], v[:, :keys]).transpose(0, 1).flatten(1)
        ours = found[start : start + slot].float()
        if not torch.allclose(ours, exact, rtol=0, atol=TOLERANCE):
            return f"its results differ from torch's by {float((ours - exact).abs().max()):.2g}"
    return None
