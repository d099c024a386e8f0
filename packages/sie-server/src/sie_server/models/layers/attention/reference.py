"""Variable-length attention as its definition says it, one sequence at a time: for CPUs, and the oracle of tests."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    most_q: int,
    most_k: int,
    *,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    used: Tensor | None = None,
) -> Tensor:
    """See `varlen.Varlen`. Logits and sums are fp32.

    Raises:
        ValueError: the boundaries do not fit the rows or the two maxima, with which a kernel would leave rows out.
    """
    queries, keys = cu_q.tolist(), cu_k.tolist()
    counts = [after - before for before, after in pairwise(keys)]
    _check("cu_q", queries, len(query), most_q)
    _check("cu_k", keys, len(key), most_k)
    if len(queries) != len(keys):
        raise ValueError(f"cu_q has {len(queries)} entries and cu_k {len(keys)}; expected as many")
    counts = counts if used is None else used.tolist()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.zeros_like(query)
    for i, count in enumerate(counts):
        rows, own = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i] + count)
        if count > keys[i + 1] - keys[i]:
            raise ValueError(f"used[{i}] is {count}, more than its {keys[i + 1] - keys[i]} keys")
        if queries[i + 1] > queries[i] and count:
            out[rows] = _one(query[rows], key[own], value[own], window, scale)
    return out


def _check(name: str, boundaries: list[int], rows: int, most: int) -> None:
    sizes = [after - before for before, after in pairwise(boundaries)]
    if boundaries[0] != 0 or boundaries[-1] > rows or min(sizes) < 0:
        raise ValueError(f"{name} is {boundaries}; expected ascending numbers from 0 to at most {rows} rows")
    if max(sizes) > most:
        raise ValueError(f"{name} has a sequence of {max(sizes)} rows; the largest was said to have {most}")


def _one(query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], scale: float) -> Tensor:
    q, k, v = (x.float().transpose(0, 1) for x in (query, key, value))  # [heads, rows, dim]
    k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
    places = torch.arange(q.shape[1], device=q.device) + k.shape[1] - q.shape[1]
    distance = torch.arange(k.shape[1], device=q.device) - places[:, None]  # [queries, keys]
    before, after = window
    far = torch.zeros_like(distance, dtype=torch.bool)
    if before >= 0:
        far |= distance < -before
    if after >= 0:
        far |= distance > after
    logits = (q @ k.transpose(1, 2) * scale).masked_fill(far, float("-inf"))
    weights = logits.softmax(-1).masked_fill(far.all(-1)[:, None], 0.0)
    return (weights @ v).transpose(0, 1).to(query.dtype)
