"""The int8 format in plain fp32 operations, and results of engines."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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


def emulated(directory: Path, like: Engine) -> Engine:
    """Return an fp32 engine that rounds weights and inputs where `like` does, and multiplies them in fp32."""
    engine = Engine(directory, device="cpu", dtype="float32")
    for name, target in like._targets.items():
        if getattr(target.layer, "integers", None):
            layer = engine._targets[name].layer
            layer._product = partial(plain_product, layer)
    return engine


def plain_product(layer: Linear, x: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    y = F.linear(rounded(x), rounded(layer.weight), layer.bias)
    y = ACTIVATIONS[activation](y) if activation else y
    return y if residual is None else y + residual


def rounded(x: Tensor) -> Tensor:
    """Round every row to 127 steps of its largest value."""
    step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (x / step + 0.5).floor() * step


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
