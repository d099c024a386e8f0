"""A classifier of several labels scores the one that the operator chooses, with the probability of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sie_server.catalog.directory import read_entry
from sie_server.catalog.entries import model_of
from sie_server.config import ServerConfig
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.serving.loading.loader import load_engine
from sie_server.verify.verify import verify
from support.checkpoints.encoders import write_json
from support.checkpoints.library import make_library_classifier, make_library_embedder
from support.device import DEVICE
from support.requests.jobs import run_job

QUERY = "how do stars burn hydrogen"
TEXTS = ["rain", "stars burn hydrogen into helium", "why proteins fold when heated", "data " * 60]


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


def probabilities(engine: Engine) -> list[float]:
    assert engine.spec.head.activation == "sigmoid"  # type: ignore[union-attr]
    job = engine.tokenize_score(ScoreTexts(QUERY, TEXTS, engine.max_seq_length))
    return torch.tensor(run_job(engine, job), dtype=torch.float64).sigmoid().tolist()


def expected(directory: Path, label: str) -> list[float]:
    """Return the scores of the pipeline, one text at a time."""
    classify = transformers.pipeline("text-classification", model=str(directory), device="cpu", top_k=None)
    pairs = [{"text": QUERY, "text_pair": text} for text in TEXTS]
    found = [classify([pair], truncation="only_second")[0] for pair in pairs]
    return [next(one["score"] for one in answer if one["label"] == label) for answer in found]


@pytest.mark.parametrize(
    ("family", "labels", "chosen"),
    [
        ("distilbert", 2, 1),
        ("electra", 3, "label 0"),
        ("deberta-v2", 3, "label 2"),
        ("modernbert", 2, "label 0"),
    ],
)
def test_the_score_is_the_probability_of_the_label(
    tmp_path: Path, family: str, labels: int, chosen: str | int
) -> None:
    directory = make_library_classifier(tmp_path / "made", family, labels)
    ours = probabilities(Engine(directory, device=DEVICE, dtype="float32", label=chosen))
    theirs = expected(directory, chosen if isinstance(chosen, str) else f"label {chosen}")
    assert np.std(theirs) > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_independent_labels_have_their_own_probability(tmp_path: Path) -> None:
    directory = make_library_classifier(tmp_path / "made", "distilbert", 3)
    change(directory, problem_type="multi_label_classification")
    (directory / "sie_reranker.yaml").write_text("label: label 1\n", encoding="utf-8")
    ours = probabilities(Engine(directory, device=DEVICE, dtype="float32"))
    np.testing.assert_allclose(ours, expected(directory, "label 1"), atol=1e-5)


def test_the_label_may_be_in_the_yaml_of_the_model(tmp_path: Path) -> None:
    directory = make_library_classifier(tmp_path / "made", "distilbert", 3)
    path = tmp_path / "nli.yaml"
    path.write_text(
        f"id: toy/nli\nsource: {directory}\nlicense: none\ndescription: x\noutputs: [score]\nmax_seq_length: 100\n"
        "label: label 2\n",
        encoding="utf-8",
    )
    model = model_of(read_entry(path))
    engine = load_engine(model, directory, ServerConfig(device=DEVICE, dtype="float32"))
    np.testing.assert_allclose(probabilities(engine), expected(directory, "label 2"), atol=1e-5)


def test_verify_compares_the_chosen_label(tmp_path: Path) -> None:
    assert verify(make_library_classifier(tmp_path / "made", "mpnet", 2), 8, label=1).equal(1e-4)


def test_a_model_without_labels_takes_none(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="only to sequence classifiers"):
        Engine(make_library_embedder(tmp_path / "made", "distilbert"), device=DEVICE, label=0)


@pytest.mark.parametrize(
    ("label", "fields", "file", "complaint"),
    [
        (
            None,
            {},
            None,
            r"3 labels \(0: label 0, 1: label 1, 2: label 2\).*`label: label 1` in sie_reranker\.yaml",
        ),
        ("entailment", {}, None, "the label 'entailment' is unknown; the classifier has 0: label 0"),
        (3, {}, None, "the label 3 is unknown"),
        ("twin", {"id2label": {"0": "twin", "1": "twin", "2": "x"}}, None, "ambiguous"),
        (0, {"problem_type": "regression"}, None, "regression"),
        (0, {"num_labels": "many"}, None, "num_labels"),
        (None, {}, "label: yes\n", "in quotes"),
        (None, {}, "label: 1\ntemplate: qwen3-reranker\n", "is for a template"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    tmp_path: Path, label: str | int | None, fields: dict[str, Any], file: str | None, complaint: str
) -> None:
    directory = make_library_classifier(tmp_path / "made", "distilbert", 3)
    change(directory, **fields)
    if file:
        (directory / "sie_reranker.yaml").write_text(file, encoding="utf-8")
    with pytest.raises(ModelLoadFailed, match=complaint):
        Engine(directory, device=DEVICE, label=label)
