"""Sequence classifiers that the server runs through transformers give the logits of the library called directly."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sie_server.catalog import catalog
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.serving.lifecycle.slots import Slot
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.library import COMPAT, LIMIT, make_library_classifier
from support.device import DEVICE
from support.requests.jobs import read_pairs, run_job


def documents() -> list[str]:
    rng = random.Random(9)
    return [random_text(rng, n) for n in [*range(0, 60, 3), 200, *(rng.randint(1, 60) for _ in range(20))]]


def logits(engine: Engine, texts: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts("rain data", texts, LIMIT))
    return run_job(engine, job)


def reference(directory: Path) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():  # one by one: padding changes the logits of some architectures
        pairs = [read_pairs(tokenizer, "rain data", [text], LIMIT) for text in documents()]
        return np.array([float(model(**pair).logits[0, 0]) for pair in pairs])


@pytest.mark.parametrize("family", sorted(COMPAT))
def test_logits_equal_transformers(tmp_path: Path, family: str) -> None:
    directory = make_library_classifier(tmp_path, family)
    engine = Engine(directory, device=DEVICE, dtype="bfloat16")  # compat models compute in fp32 anyway
    assert engine.spec.compat
    assert engine.spec.backbone.max_length == LIMIT
    ours, expected = logits(engine, documents()), reference(directory)
    assert expected.std() > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose([logits(engine, [d])[0] for d in documents()], ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits(engine, documents()[::-1]), ours[::-1], atol=1e-4, rtol=0)


def test_a_missing_head_is_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = make_library_classifier(tmp_path, "deberta-v2")
    weights = load_file(directory / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelLoadFailed, match=r"classifier\.weight"):
        Engine(directory, device=DEVICE)


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_library_classifier(tmp_path, "deberta-v2")
    for name in [n for n in sys.modules if n.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelLoadFailed, match=r"pip install './packages/sie-server\[compat\]'"):
        Engine(directory, device=DEVICE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["DebertaV2ForTokenClassification"]}, "does not support"),
        ({"architectures": ["MyForSequenceClassification"]}, "does not support"),
        ({"model_type": "xlnet"}, "xlnet"),
        ({"pad_token_id": None}, "pad_token_id"),
        ({"num_labels": 3}, "3 labels"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    directory = make_library_classifier(tmp_path, "deberta-v2")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE)


def test_the_model_list_marks_models_run_through_transformers() -> None:
    marked = {name: Slot(model).info([]).compat for name, model in catalog().items()}
    assert marked["mixedbread-ai/mxbai-rerank-base-v1"]
    assert not marked["BAAI/bge-reranker-base"]
