"""An adapter on a served model equals the same change merged into its weights, for every family.

`peft` itself is the reference where it can load a family (test_lora.py). These tests
need no library and cover all families.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, ScoreTexts
from sie_server.engine.lora.adapter import Adapter
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.library import COMPAT
from support.device import DEVICE
from support.families.adapters import Pairs, write_adapter
from support.families.every import EVERY, Made

RANK, ALPHA = 3, 6.0
FAMILIES = [name for name in sorted(EVERY) if name.rpartition(" ")[2] not in COMPAT]
DOCUMENTS = [random_text(random.Random(i), 1 + 5 * i) for i in range(8)]


def pairs_for(directory: Path, engine: Engine) -> Pairs:
    """Return A and B for every linear module whose weights are in the checkpoint's main file."""
    generator = torch.Generator().manual_seed(7)
    pairs = Pairs()
    for name, tensor in sorted(load_file(directory / "model.safetensors").items()):
        module = name.removesuffix(".weight")
        target = engine._targets.get(module)
        if target is not None and target.linear and tensor.ndim == 2:
            outputs, inputs = tensor.shape
            a, b = (torch.randn(s, generator=generator) * 0.1 for s in ((RANK, inputs), (outputs, RANK)))
            pairs[module] = (a, b)
    return pairs


def merged(made: Made, pairs: Pairs, directory: Path) -> Path:
    shutil.copytree(made.served, directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    for module, (a, b) in pairs.items():
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + ALPHA / RANK * b @ a
    save_file(weights, path, {"format": "pt"})
    return directory


def results(engine: Engine, limit: int, adapter: Adapter | None = None) -> list[float]:
    """Return scores, or for a model without scores a sum over the first values of each vector."""
    outputs = engine.spec.outputs
    if "score" in outputs:
        job = engine.tokenize_score(ScoreTexts("how do stars burn", DOCUMENTS, limit), adapter=adapter)
    else:
        job = engine.tokenize_encode(DOCUMENTS, (outputs[0],), limit, adapter=adapter)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        if work.index != QUERY:
            job.put(work.index, result)
    return [_number(result) for result in job.results]


def _number(result: Any) -> float:
    if not isinstance(result, dict):
        return float(result)
    [values] = result.values()
    values = getattr(values, "values", values)
    return float(values.ravel()[:7].sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_equals_its_merged_weights(name: str, tmp_path: Path) -> None:
    family, made = EVERY[name], EVERY[name].make(tmp_path / "made")

    def load(directory: Path) -> Engine:
        return Engine(directory, device=DEVICE, dtype="float32", template=made.template)

    engine = load(made.served)
    pairs = pairs_for(made.served, engine)
    assert len(pairs) >= 8  # all linear modules of several layers
    adapter = engine.attach(write_adapter(tmp_path / "adapter", RANK, ALPHA, pairs))
    limit = min(family.limit, engine.max_seq_length)
    plain, ours = results(engine, limit), results(engine, limit, adapter)
    expected = results(load(merged(made, pairs, tmp_path / "merged")), limit)
    assert max(abs(a - b) for a, b in zip(ours, expected, strict=True)) <= 10 * family.tolerance
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) > 0.01
    assert results(engine, limit) == pytest.approx(plain, abs=1e-5)
