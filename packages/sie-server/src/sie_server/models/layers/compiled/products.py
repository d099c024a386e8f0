"""The product of the int8 format in one pass over memory, for CPUs with AVX512-VNNI."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.compiled.library import finish, has_instructions, library, passes
from sie_server.models.layers.rounding import ZERO, quantise_rows, quantise_weight

PANEL, QUAD = 64, 4  # outputs and inputs that lie next to each other in a packed weight
BLOCK = 48  # rows that a thread takes at a time
LINE = 64  # bytes of a cache line
NUMBERS = {None: 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "relu": 3, "silu": 4, "tanh": 5}
TYPES = {torch.bfloat16: 0, torch.float32: 1}
TOLERANCE = 1e-4  # absolute and relative, in fp32


class _Task(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "w", "scales", "sums", "bias", "residual", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "stride")),
        *((name, ctypes.c_int32) for name in ("activation", "type", "threads")),
    )


class PackedWeight:
    """An int8 weight [outputs, inputs] in the library's layout."""

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        self.shape = numbers.shape
        outputs = -(-self.shape[0] // PANEL) * PANEL
        self._packed = _laid_out(numbers, outputs)
        self._scales = F.pad(scales, (0, outputs - self.shape[0]))
        sums = numbers.sum(1, dtype=torch.int32) * ZERO
        self._sums = F.pad(sums, (0, outputs - self.shape[0]))

    def numbers(self) -> Tensor:
        """Return the weight as it was given."""
        panels, quads = self._packed.shape[:2]
        whole = self._packed.permute(0, 2, 1, 3).reshape(panels * PANEL, quads * QUAD)
        return whole[: self.shape[0], : self.shape[1]]

    def product(
        self,
        x: Tensor,
        bias: Tensor | None,
        activation: str | None,
        residual: Tensor | None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Return activation(x · Wᵀ + b) + residual in the dtype of x, a key of `TYPES`."""
        x = x if x.stride(1) == 1 else x.contiguous()
        residual = None if residual is None else residual.contiguous()
        outputs, inputs = self.shape
        if y is None:
            y = torch.empty(len(x), outputs, dtype=x.dtype)
        task = _Task(
            x.data_ptr(),
            self._packed.data_ptr(),
            self._scales.data_ptr(),
            self._sums.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            len(x),
            inputs,
            outputs,
            x.stride(0),
            NUMBERS[activation],
            TYPES[x.dtype],
            torch.get_num_threads(),
        )
        found = library()
        assert found is not None  # `usable` has said so
        finish(found.sie_linear(ctypes.byref(task)))
        return y


def _laid_out(numbers: Tensor, outputs: int) -> Tensor:
    """Return [outputs / 64, inputs / 4, 64, 4], padded with zeros, at the start of a cache line."""
    inputs = -(-numbers.shape[1] // QUAD) * QUAD
    padded = F.pad(numbers, (0, inputs - numbers.shape[1], 0, outputs - numbers.shape[0]))
    panels = padded.view(outputs // PANEL, PANEL, inputs // QUAD, QUAD).permute(0, 2, 1, 3)
    room = torch.empty(panels.numel() + LINE, dtype=torch.int8)
    start = -room.data_ptr() % LINE
    return room[start : start + panels.numel()].view(panels.shape).copy_(panels)


def buffers(inputs: int) -> int:
    """Return the bytes that a product with this number of inputs needs for itself."""
    return torch.get_num_threads() * BLOCK * (inputs + LINE)


@cache
def usable() -> bool:
    """Return whether the library is installed, is faster than oneDNN on this CPU, and its results are right."""
    needed = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_vnni")
    # oneDNN multiplies with AMX, several times faster
    if library() is None or not has_instructions(*needed) or has_instructions("amx_int8"):
        return False
    return passes("the product of the int8 format", _difference)


def _difference() -> str | None:
    """Compare every form with the product of the same integers in fp64."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(80, 70, generator=generator) / 8, torch.randn(53, 70, generator=generator)
    bias, residual = torch.randn(80, generator=generator), torch.randn(53, 80, generator=generator)
    weight[0], x[0] = 1.0, 1.0  # the largest integers everywhere
    numbers, scales = quantise_weight(weight)
    values, heights = quantise_rows(x)
    packed = PackedWeight(numbers, scales)
    if not torch.equal(packed.numbers(), numbers):
        return "it does not keep the weights"
    plain = (values.double() - ZERO) @ numbers.double().T * scales.double() * heights.double()
    for name in NUMBERS:
        exact = plain + bias.double()
        expected = (ACTIVATIONS[name](exact) if name else exact) + residual.double()
        # memory that is used again may hold right results of an earlier call
        ours = packed.product(x, bias, name, residual, torch.full((53, 80), torch.nan)).double()
        if not torch.allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE):
            return (
                f"its results with the activation {name} differ by {float((ours - expected).abs().max()):.2g}"
            )
    return None
