"""The fused oneDNN products (`models.layers.onednn`): used only where they compute what `F.linear` computes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers import onednn
from sie_server.models.layers.linear import Linear

needs_operators = pytest.mark.skipif(
    not onednn._available(), reason="this CPU or this torch has no bf16 operators of oneDNN"
)


@pytest.fixture(autouse=True)
def _check_again() -> Iterator[None]:
    onednn.usable.cache_clear()
    yield
    onednn.usable.cache_clear()


@needs_operators
def test_the_operators_agree_with_plain_products_and_are_used(caplog: pytest.LogCaptureFixture) -> None:
    assert onednn._differences() == []
    with torch.inference_mode():
        linear, x = _layer()
        linear(x)
    assert linear._packed is not None
    assert not caplog.records


@pytest.mark.parametrize("broken", ["values", "exception"])
def test_an_operator_that_computes_something_else_is_never_used(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def other(x: Tensor, packed: Tensor, bias: Tensor | None, attribute: str, *rest: object) -> Tensor:
        nonlocal calls
        calls += 1
        if broken == "exception":
            raise RuntimeError("the operator takes other arguments")
        return F.linear(x, packed, bias) * 1.1

    _replace_operators(monkeypatch, other)
    linear, x = _layer()
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "sie_server.onednn"):
        y = linear(x, activation="gelu")
        checked = calls
        linear(x, activation="gelu")
        _layer()[0](x)
    assert torch.equal(y, F.gelu(F.linear(x, linear.weight, linear.bias)))
    assert linear._packed is None
    assert checked and calls == checked  # one comparison in the process, and no use after it
    [record] = caplog.records
    assert ("gelu with bias" if broken == "values" else "takes other arguments") in record.getMessage()


def test_a_wrong_activation_or_residual_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def relu_is_missing(x: Tensor, packed: Tensor, bias: Tensor | None, attribute: str, *rest: str) -> Tensor:
        activation = {"gelu": F.gelu, "swish": F.silu, "tanh": torch.tanh}.get(attribute, lambda y: y)
        return activation(F.linear(x, packed, bias))

    _replace_operators(monkeypatch, relu_is_missing, binary=lambda x, r, w, b, _: F.linear(x, w, b) - r)
    assert onednn._differences() == ["relu", "residual", "relu with bias", "residual with bias"]


class _Operator:
    def __init__(self, unary: object, binary: object) -> None:
        self._unary, self.binary = unary, binary

    def __call__(self, *arguments: object) -> Tensor:
        return self._unary(*arguments)  # type: ignore[operator]


class _Operators:
    """The private operators that `onednn` uses; the packed weight is the weight."""

    def __init__(self, unary: object, binary: object) -> None:
        self._linear_pointwise = _Operator(unary, binary)

    def _reorder_linear_weight(self, weight: Tensor, rows: None) -> Tensor:
        return weight.clone()

    def _is_mkldnn_bf16_supported(self) -> bool:
        return True


def _replace_operators(monkeypatch: pytest.MonkeyPatch, unary: object, binary: object = None) -> None:
    plain = binary or (lambda x, residual, weight, bias, _: F.linear(x, weight, bias) + residual)
    monkeypatch.setattr(torch.ops, "mkldnn", _Operators(unary, plain))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


def _layer() -> tuple[Linear, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(32, 16, generator=generator).bfloat16()
    return Linear(weight, torch.ones(32).bfloat16()), torch.randn(8, 16, generator=generator).bfloat16()
