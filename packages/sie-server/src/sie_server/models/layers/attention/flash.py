"""FlashAttention 2 inside torch (Dao, 2023, https://arxiv.org/abs/2307.08691), for sequences of any length on a GPU.

The operator below `scaled_dot_product_attention` is called directly: the public function around it adds 10 to 36 µs to
a call (https://github.com/pytorch/pytorch/issues/177109). It is private, so its schema is compared with the arguments
that are passed here, and on a GPU its values with those of `reference`. Otherwise the public function is taken, if it
has the arguments, else none. No GPU was at hand when this was written: nothing here has run on one.

Limits of the kernel: compute capability 8.0, heads of at most 256 and a multiple of 8, fp16 and bf16, no bias, no cap.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sie_server.models.layers.attention.reference import reference

log = logging.getLogger("sie_server.attention")

Kernel = Callable[..., Tensor]  # called like `varlen.varlen`
POSITIONAL = (
    "query",
    "key",
    "value",
    "cum_seq_q",
    "cum_seq_k",
    "max_q",
    "max_k",
    "dropout_p",
    "is_causal",
    "return_debug_mask",
)
NAMED = {"scale", "window_size_left", "window_size_right", "seqused_k"}
PUBLIC = {
    "query",
    "key",
    "value",
    "cu_seq_q",
    "cu_seq_k",
    "max_q",
    "max_k",
    "scale",
    "window_size",
    "seqused_k",
}
TOLERANCE = 2**-6  # absolute; two steps of bf16 for values of about 1


@cache
def kernel() -> Kernel | None:
    """Return variable-length attention on a GPU; None if this torch has none with the necessary arguments."""
    return _private() or _public()


def _private() -> Kernel | None:
    operator: Any = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if operator is None or not accepts(operator.default._schema.arguments):
        return None
    return _call_private


def accepts(arguments: Any) -> bool:
    """Return whether an operator with these arguments of a schema can be called as `_call_private` calls it."""
    first = tuple(one.name for one in arguments if not one.kwarg_only)
    rest = {one.name: one for one in arguments if one.kwarg_only}
    return (
        first == POSITIONAL
        and rest.keys() >= NAMED
        and all(one.has_default_value() for name, one in rest.items() if name not in NAMED)
    )


def _call_private(
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
    before, after = window
    results = torch.ops.aten._flash_attention_forward(
        *(_dense_rows(x) for x in (query, key, value)),
        cu_q,
        cu_k,
        most_q,
        most_k,
        0.0,
        window == (-1, 0),
        False,
        scale=scale,
        window_size_left=before,
        window_size_right=after,
        seqused_k=used,
    )
    out: Tensor = results[0]
    return out


def _public() -> Kernel | None:
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    varlen_attn: Any = varlen.varlen_attn
    known = inspect.signature(varlen_attn).parameters
    if not known.keys() >= PUBLIC:
        return None
    grouped = {"enable_gqa": True} if "enable_gqa" in known else {}

    def call(
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
        rows = [_dense_rows(x) for x in (query, key, value)]
        out: Tensor = varlen_attn(
            *rows, cu_q, cu_k, most_q, most_k, scale=scale, window_size=window, seqused_k=used, **grouped
        )
        return out

    return call


def _dense_rows(x: Tensor) -> Tensor:
    """Return x with heads whose numbers are neighbours in memory, as the kernel reads them; usually x itself."""
    return x if x.stride(-1) == 1 else x.contiguous()


@cache
def works_on(device: torch.device) -> bool:
    """Return whether this torch has the kernel and it computes the same as `reference` here; checked once a process."""
    found = kernel()
    if found is None:
        log.warning(
            "this version of torch (%s) has no variable-length attention with windows; "
            "dense blocks are computed instead, more slowly",
            torch.__version__,
        )
        return False
    try:
        wrong = differences(found, device, torch.float16)
    except Exception as error:  # private operators may fail with any exception
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        log.warning(
            "torch's variable-length attention does not compute what its definition says (%s); "
            "dense blocks are computed instead, more slowly. Please report this with your version of torch (%s)",
            "; ".join(wrong),
            torch.__version__,
        )
    return not wrong


def differences(found: Kernel, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Compare a kernel with `reference` on random input; return the forms that differ."""
    generator = torch.Generator().manual_seed(0)
    lengths, before = (5, 1, 17, 70, 0, 33), 6
    cu, longer = (
        torch.tensor([0, *(n + more for n in lengths)]).cumsum(0).to(torch.int32) for more in (0, before)
    )
    each = torch.arange(len(lengths) + 1, dtype=torch.int32)

    def rows(count: int, heads: int) -> Tensor:
        return torch.randn(count, heads, 32, generator=generator).to(dtype)

    most, keys = max(lengths), int(cu[-1])
    key, value, wide_key, wide_value = (rows(n, 2) for n in (keys, keys, int(longer[-1]), int(longer[-1])))
    query, one = rows(keys, 4), rows(len(lengths), 4)
    used = torch.tensor([max(1, n // 2) if n else 0 for n in lengths], dtype=torch.int32)
    forms: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "full": ((query, key, value, cu, cu, most, most), {}),
        "causal": ((query, key, value, cu, cu, most, most), {"window": (-1, 0)}),
        "window": ((query, key, value, cu, cu, most, most), {"window": (8, 8), "scale": 0.3}),
        "causal window": ((query, key, value, cu, cu, most, most), {"window": (8, 0)}),
        "used keys": ((query, key, value, cu, cu, most, most), {"used": used}),
        "one query": ((one, wide_key, wide_value, each, longer, 1, most + before), {}),
        "prefix": ((query, wide_key, wide_value, cu, longer, most, most + before), {"window": (-1, 0)}),
    }
    wrong = []
    for name, (args, named) in forms.items():
        theirs = found(*(_on(device, x) for x in args), **{key: _on(device, x) for key, x in named.items()})
        exact = reference(*args, **named)
        if theirs.shape != exact.shape or not torch.allclose(
            theirs.cpu().float(), exact.float(), atol=TOLERANCE
        ):
            wrong.append(name)
    return wrong


def _on(device: torch.device, x: Any) -> Any:
    return x.to(device) if isinstance(x, Tensor) else x
