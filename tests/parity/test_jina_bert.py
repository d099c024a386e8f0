"""JinaBERT (jina-reranker-v1, jina-embeddings-v2) against its formulas.

No library on PyPI implements this architecture, and the code of its repository is never run. The reference therefore
follows the papers: padded, one head after the other, without code of the server. Checkpoints use the names and
configuration fields of the published ones.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.layers.attention.biased import KEPT, head_slopes
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.encoders import write_json
from support.device import DEVICE
from support.families.jina_bert import (
    EMBEDDERS,
    KINDS,
    LIMIT,
    RERANKERS,
    SLOPES,
    JinaBert,
    classified,
    encoded,
    hidden,
    make_jina_bert,
)
from support.requests.jobs import run_job


@dataclass
class Case:
    made: JinaBert
    engine: Engine


def make(root: Path, name: str) -> Case:
    return Case(make_jina_bert(root, name), Engine(root, device=DEVICE, dtype="float32"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: make(tmp_path_factory.mktemp(name), name) for name in KINDS}


# ── the tests ──


def documents() -> list[str]:
    """Return documents from empty to beyond the limit, on both sides of the length up to which layers share a bias."""
    rng = random.Random(8)
    return [random_text(rng, n) for n in [*range(12), 70, 71, 150, 150, 290, 330, 500, 560, 900]]


def logits(engine: Engine, texts: list[str]) -> list[float]:
    job = engine.tokenize_score(ScoreTexts("rain data", texts, LIMIT))
    return run_job(engine, job)


@pytest.mark.parametrize("heads", sorted(SLOPES))
def test_slopes_are_the_published_ones(heads: int) -> None:
    assert head_slopes(heads) == pytest.approx(SLOPES[heads], rel=1e-12)


@pytest.mark.parametrize("name", RERANKERS)
def test_logits_equal_the_formulas(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    inputs = [encoded(case.made, ["rain data"], [document]) for document in documents()]
    lengths = [len(one["input_ids"][0]) for one in inputs]
    assert max(lengths) == LIMIT and any(KEPT < n < LIMIT for n in lengths) and any(n < 100 for n in lengths)
    with torch.inference_mode():
        expected = torch.cat([classified(case.made, one) for one in inputs])
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits(case.engine, documents()), expected.numpy(), atol=1e-4, rtol=0)
    assert case.engine.spec.architecture == "JinaBertForSequenceClassification"
    assert (case.engine.max_seq_length, case.engine.spec.outputs) == (LIMIT, ["score"])


@pytest.mark.parametrize("name", RERANKERS)
def test_alone_equals_batched_equals_permuted(cases: dict[str, Case], name: str) -> None:
    engine, some = cases[name].engine, documents()[::3]
    batched = logits(engine, some)
    np.testing.assert_allclose([logits(engine, [d])[0] for d in some], batched, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits(engine, some[::-1]), batched[::-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embeddings_equal_the_formulas(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    inputs = [encoded(case.made, [document]) for document in documents()]
    with torch.inference_mode():
        expected = torch.cat([hidden(case.made, one).mean(1) for one in inputs])
    job = case.engine.tokenize_encode(documents(), ("dense",), LIMIT)
    run_job(case.engine, job)
    ours = np.stack([result["dense"] for result in job.results])
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type"),
        ({"position_embedding_type": None}, "position_embedding_type"),
        ({"feed_forward_type": "swiglu"}, "feed_forward_type"),
        ({"feed_forward_type": "original"}, "intermediate.dense"),
        ({"hidden_size": 50}, "num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    directory = make(tmp_path, "reranker-v1").made.directory
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", config | change)
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")


def test_an_encoder_without_head_is_refused_as_reranker(tmp_path: Path) -> None:
    """Without modules.json the architecture name means a classifier, and a missing head is never initialised."""
    case = make(tmp_path, "embeddings-prefixed")
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ModelLoadFailed, match=r"lacks the weight 'classifier\.weight'"):
        Engine(case.made.directory, device=DEVICE, dtype="float32")
