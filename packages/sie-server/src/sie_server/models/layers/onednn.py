"""bf16 products on a CPU through oneDNN, with weights packed once and the following operations fused into the product.

torch's own `linear` packs the weights again in every call, and each activation or sum after it is a separate pass over
memory with its own barrier between threads. Measured on 2 cores with AMX, XLM-R base: 1,580 → 1,300 ms per 100
documents. The operators are those of torch's compiler. They are private, so before the first use in a process their
results are compared with those of `F.linear`; when an operator is missing, fails or differs, `pack` returns None.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers.activations import ACTIVATIONS

log = logging.getLogger("sie_server.onednn")

# activation → attr, algorithm of mkldnn::_linear_pointwise
FUSED = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
}
TOLERANCE = 2**-6  # absolute and relative; two steps of bf16, which has 8 bits of precision


def pack(weight: Tensor) -> Tensor | None:
    """Return the weight [outputs, inputs] in oneDNN's own layout, or None where `linear` cannot be used."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not usable():
        return None
    return _pack(weight)


def linear(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str | None, residual: Tensor | None
) -> Tensor:
    """Compute activation(x · Wᵀ + b), or x · Wᵀ + b + residual, in one pass."""
    result: Tensor
    if residual is not None:
        result = torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")
    else:
        attribute, algorithm = FUSED[activation]
        result = torch.ops.mkldnn._linear_pointwise(x, packed, bias, attribute, [], algorithm)
    return result


@cache
def usable() -> bool:
    """Return True when oneDNN has the operators and they compute the same as `F.linear`; checked once per process."""
    if not _available():
        return False
    try:
        wrong = _differences()
    except Exception as error:  # private operators may fail with any exception
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        log.warning(
            "oneDNN's fused linear operators do not compute what F.linear computes (%s); "
            "bf16 models run without them, more slowly. Please report this with your version of torch (%s)",
            "; ".join(wrong),
            torch.__version__,
        )
    return not wrong


def _available() -> bool:
    operators = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(operators, name) for name in names)
        and bool(operators._is_mkldnn_bf16_supported())
    )


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


def _differences() -> list[str]:
    """Compare every form of `linear` with `F.linear` in fp32 on random input; return the forms that differ."""
    rows, inputs, outputs = 24, 64, 48
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    x, residual, bias = random(rows, inputs), random(rows, outputs), random(outputs)
    weight = random(outputs, inputs) / 8  # the products then have unit variance
    packed = _pack(weight)
    wrong = [] if torch.equal(packed.to_dense(), weight) else ["packed weight"]
    for b, suffix in ((None, ""), (bias, " with bias")):
        exact = F.linear(x.float(), weight.float(), None if b is None else b.float())
        for name in FUSED:
            expected = ACTIVATIONS[name](exact) if name else exact
            if not _close(linear(x, packed, b, name, None), expected):
                wrong.append(f"{name or 'linear'}{suffix}")
        if not _close(linear(x, packed, b, None, residual), exact + residual.float()):
            wrong.append(f"residual{suffix}")
    return wrong


def _close(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and torch.allclose(
        result.float(), expected, rtol=TOLERANCE, atol=TOLERANCE
    )
