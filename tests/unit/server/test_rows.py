"""Row functions that are compiled on a GPU: same values, one graph for all numbers of rows, plain where it fails."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from sie_server.models.layers import rows
from sie_server.models.layers.linear import LayerNorm
from sie_server.models.layers.rows import GATES, RowFunction, added_normed, rms_normed, rotated


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Compile functions of any tensor, with a backend that counts graphs and needs no compiler."""
    counter = CompileCounter()
    monkeypatch.setattr(rows, "BACKEND", counter)
    monkeypatch.setattr(rows, "_off", lambda: False)
    monkeypatch.setattr(rows, "_is_on_gpu", lambda x: True)
    monkeypatch.setattr(RowFunction, "failed", None)
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def fresh(function: RowFunction) -> RowFunction:
    return RowFunction(function.plain)


def inputs(count: int, dtype: torch.dtype) -> dict[str, tuple[RowFunction, tuple[Any, ...]]]:
    torch.manual_seed(count)
    x, y = (torch.randn(count, 32).to(dtype) for _ in range(2))
    heads, angles = torch.randn(count, 4, 16).to(dtype), torch.randn(count, 1, 8)
    return {
        "rotary": (rotated, (heads, angles.cos(), angles.sin())),
        "rms norm": (rms_normed, (x, torch.randn(32), 1e-6)),
        "sum and norm": (added_normed, (x, y, torch.randn(32).to(dtype), torch.randn(32).to(dtype), 1e-5)),
        "gate": (GATES["silu"], (x, y)),
        "gelu": (GATES["gelu_pytorch_tanh"], (x, y)),
    }


@pytest.mark.parametrize("name", ["rotary", "rms norm", "sum and norm", "gate", "gelu"])
def test_a_compiled_function_has_the_same_values_and_one_graph(name: str, compiling: CompileCounter) -> None:
    function = fresh(inputs(2, torch.bfloat16)[name][0])
    with torch.inference_mode():
        for count in (5, 2, 17, 1, 300):
            _, arguments = inputs(count, torch.bfloat16)[name]
            assert torch.equal(function(*arguments), function.plain(*arguments))
    assert compiling.frame_count == 1


def test_functions_fall_back_for_good_where_compiling_fails(
    compiling: CompileCounter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[None] = []

    def broken(graph: Any, examples: Any) -> Any:
        tried.append(None)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(rows, "BACKEND", broken)
    function, other = fresh(GATES["silu"]), fresh(rms_normed)
    x = torch.randn(4, 8)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for _ in range(3):
            assert torch.equal(function(x, x), F.silu(x) * x)
        other(x, torch.ones(8), 1e-6)
    assert len(tried) == 1
    assert caplog.text.count("row functions are not compiled: BackendCompilerFailed") == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: device-side assert")],
)
def test_errors_of_the_device_are_no_errors_of_the_compiler(
    error: Exception, compiling: CompileCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*arguments: Tensor) -> Tensor:
        raise error

    function = fresh(GATES["silu"])
    monkeypatch.setattr(function, "_compiled", kernel)
    with pytest.raises(type(error)):
        function(torch.ones(4, 8), torch.ones(4, 8))
    assert RowFunction.failed is None


@pytest.mark.parametrize(
    ("capability", "triton", "compiler", "own", "reason"),
    [
        ((9, 0), True, "gcc", None, None),
        ((9, 0), True, None, None, "there is no C compiler (cc, gcc, clang)"),
        ((9, 0), True, "gcc", "icc", "there is no C compiler (icc)"),
        ((9, 0), False, "gcc", None, "triton is not installed"),
        ((6, 1), True, "gcc", None, "the GPU is older than compute capability 7.0"),
        (None, True, "gcc", None, "there is no GPU"),
    ],
)
def test_nothing_is_compiled_where_a_part_is_missing(
    capability: tuple[int, int] | None,
    triton: bool,
    compiler: str | None,
    own: str | None,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(rows, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == compiler else None)
    monkeypatch.delenv("CC", raising=False)
    if own:
        monkeypatch.setenv("CC", own)
    assert rows.why_not.__wrapped__() == reason


def test_a_cpu_runs_the_plain_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    x = torch.randn(4, 8)
    assert torch.equal(GATES["silu"](x, x), F.silu(x) * x)


def test_the_norm_of_a_sum_is_that_of_both_steps() -> None:
    x, y = torch.randn(2, 6, 16)
    norm = LayerNorm(torch.randn(16), torch.randn(16), 1e-5)
    assert torch.equal(norm.of_sum(x, y), norm(x + y))
