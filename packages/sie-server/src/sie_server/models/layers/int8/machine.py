"""Whether this machine multiplies 8-bit integers, and whether torch's operators for it compute what they should."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sie_server.models.layers.int8.products import pack, product
from sie_server.models.layers.rounding import quantise_rows, quantise_weight

# instructions that add products of 8-bit integers into 32 bits; older ones add into 16 bits, which overflow
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
OPERATORS = ("qlinear_prepack", "qlinear_pointwise")  # of torch.ops.onednn
TOLERANCE = 1e-5  # relative; the products are exact, only the scales round


def problem(device: torch.device) -> str | None:
    """Return why the int8 format cannot be used on `device`, with the next step; None if it can.

    The operators are checked once per process.
    """
    instead = "use --dtype auto"
    if device.type != "cpu":
        return f"dtype 'int8' is for CPUs, but the device is {device.type!r}; {instead}, or --device cpu"
    if not _instructions():
        return (
            f"dtype 'int8' needs a CPU with one of the instruction sets {', '.join(INSTRUCTIONS)}, "
            f"and this one has none; {instead}"
        )
    wrong = differences()
    if wrong:
        return (
            f"dtype 'int8' cannot be used with torch {torch.__version__} on this machine: {wrong}. Please report this; "
            f"{instead} until then"
        )
    return None


def _instructions() -> list[str]:
    """Return those of `INSTRUCTIONS` that this CPU has."""
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return [name for name in INSTRUCTIONS if capabilities.get(name)]


@cache
def differences() -> str | None:
    """Compare the product with one in fp64 of the same integers, extreme values included; return what is wrong."""
    if not torch.backends.mkldnn.is_available():
        return "oneDNN is not available"
    missing = [name for name in OPERATORS if not hasattr(torch.ops.onednn, name)]
    if missing:
        return f"torch.ops.onednn has no operator {' and no '.join(missing)}"
    try:
        return _compared()
    except Exception as error:  # private operators may fail with any exception
        return f"onednn.qlinear_pointwise failed with {type(error).__name__}: {error}"


def _compared() -> str | None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    x = torch.randn(40, 96, generator=generator)
    weight[0], x[0] = 1.0, 1.0  # the largest integers everywhere: sums of 16 bits would overflow
    weight[1, ::2] = -3.0
    numbers, scales = quantise_weight(weight)
    values, heights = quantise_rows(x)
    packed = pack(numbers)
    if not torch.equal(packed.to_dense().T, numbers):
        return "onednn.qlinear_prepack does not keep the weights"
    exact = (values.double() - 128) @ numbers.double().T * scales.double() * heights.double()
    found: Tensor = product(values, heights, packed, scales)
    if found.shape != exact.shape or not torch.allclose(
        found.double(), exact, rtol=TOLERANCE, atol=TOLERANCE
    ):
        return "onednn.qlinear_pointwise does not compute the product of its inputs"
    return None
