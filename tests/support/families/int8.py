"""The int8 format in plain fp32 operations, and results of engines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, ScoreTexts
from sie_server.models.layers.activations import ACTIVATIONS
from sie_server.models.layers.int8 import machine
from sie_server.models.layers.linear import Linear
from support.checkpoints.cross_encoders import random_text

CPU = torch.device("cpu")
QUERY_TEXT = "how do stars burn hydrogen"
needs_int8 = pytest.mark.skipif(
    machine.problem(CPU) is not None, reason=f"this machine has no int8 format: {machine.problem(CPU)}"
)


@contextmanager
def products_compared(engine: Engine) -> Iterator[None]:
    """Compare each product of 8-bit integers inside this block with the same product in plain fp64 operations.

    Results of whole passes cannot be compared: an input halfway between two integers may round to either, and every
    later layer sees the difference.
    """
    layers = {id(t.layer): t.layer for t in engine._targets.values() if getattr(t.layer, "integers", None)}
    waiting = set(layers)

    def compared(layer: Linear, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
        y = Linear._product(layer, x, activation, residual)
        check_product(layer, x, activation, residual, y)
        waiting.discard(id(layer))
        return y

    for layer in layers.values():
        layer._product = partial(compared, layer)
    yield
    assert layers and not waiting, f"{len(waiting)} of {len(layers)} layers computed no product"
    for layer in layers.values():
        del layer._product


def check_product(
    layer: Linear, x: Tensor, activation: str | None, residual: Tensor | None, y: Tensor
) -> None:
    weight, wide = layer.plain_weight().double(), x.double()
    step = wide.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    halves = ((wide / step).abs() % 1 - 0.5).abs() < 1e-3  # these inputs may round to either integer
    expected = (wide / step + 0.5).floor() * step @ weight.T
    expected = expected if layer.bias is None else expected + layer.bias
    expected = ACTIVATIONS[activation](expected) if activation else expected
    expected = expected if residual is None else expected + residual
    allowed = 1e-5 * expected.abs().max() + 1.2 * step * (halves.double() @ weight.abs().T)
    worst = float(((y - expected).abs() - allowed).max())
    assert worst < 0, f"a product of {tuple(weight.shape)} differs by {worst} more than rounding explains"


def results(engine: Engine, documents: list[str], adapter: Any = None, alone: bool = False) -> np.ndarray:
    if "score" in engine.spec.outputs:
        job = engine.tokenize_score(ScoreTexts(QUERY_TEXT, documents, 60), adapter=adapter)
    else:
        job = engine.tokenize_encode(documents, (engine.spec.outputs[-1],), 60, adapter=adapter)
    for works in [[work] for work in job.work] if alone else [job.work]:
        for work, result in zip(works, engine.run(works), strict=True):
            if work.index != QUERY:
                job.put(work.index, flat(result, engine.spec.backbone.vocab_size))
    return np.array(job.results)


def flat(result: Any, vocabulary: int) -> Any:
    if not isinstance(result, dict):
        return result
    [values] = result.values()
    if hasattr(values, "indices"):
        whole = np.zeros(vocabulary, np.float32)
        whole[values.indices] = values.values
        return whole
    return values


def texts(count: int = 24) -> list[str]:
    rng = random.Random(3)
    return [random_text(rng, rng.randint(1, 60)) for _ in range(count)]
