"""Architectures published with their own code give the logits of the equivalent classes in transformers.

Neither their weights nor their code is available offline, so the tests write one set of random weights twice: as the
library's class saves it (the reference), and under the names and configuration fields of the published repositories
(the served checkpoint). The reference is `Gte…` for the `new` architecture and `JinaEmbeddingsV3…` for the rotary
XLM-R; both convert the published names themselves. jina-reranker-v2-base-multilingual, whose configuration says
absolute positions, is XLM-R under other names.
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
import transformers

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import random_text
from support.device import DEVICE
from support.families.adapters import Pairs, under, write_adapter
from support.families.relatives import (
    LAYERS,
    LIMIT,
    RELATIVES,
    SIZE,
    Relative,
    make_relative,
)
from support.requests.jobs import read_pairs, run_job


@dataclass
class Case:
    directory: Path
    reference: Any
    tokenizer: Any
    engine: Engine


@pytest.fixture(scope="module", params=sorted(RELATIVES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make(tmp_path_factory.mktemp(request.param), RELATIVES[request.param])


def make(root: Path, relative: Relative) -> Case:
    published, library = make_relative(root, relative)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(library).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    return Case(published, model, tokenizer, Engine(published, device=DEVICE, dtype="float32"))


def documents() -> list[str]:
    rng = random.Random(6)
    return [
        random_text(rng, n) for n in [*range(40), 70, 71, 72, 300, *(rng.randint(1, 90) for _ in range(60))]
    ]


def logits(engine: Engine, texts: list[str], adapter: Adapter | None = None) -> list[float]:
    job = engine.tokenize_score(ScoreTexts("rain data", texts, LIMIT), adapter=adapter)
    return run_job(engine, job)


def encoded(case: Case) -> Any:
    return read_pairs(case.tokenizer, "rain data", documents(), LIMIT)


def test_logits_equal_transformers(case: Case) -> None:
    with torch.inference_mode():
        expected = case.reference(**encoded(case)).logits[:, 0].numpy()
    ours = logits(case.engine, documents())
    assert expected.std() > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert case.engine.max_seq_length == LIMIT
    assert case.engine.spec.head.activation == "sigmoid"  # type: ignore[union-attr]


def test_token_ids_equal_the_reference(case: Case) -> None:
    inputs = encoded(case)
    expected = [
        row[mask].tolist() for row, mask in zip(inputs.input_ids, inputs.attention_mask.bool(), strict=True)
    ]
    job = case.engine.tokenize_score(ScoreTexts("rain data", documents(), LIMIT))
    ours = {work.index: work.tokens.ids.tolist() for work in job.work}
    assert [ours[i] for i in range(len(expected))] == expected
    assert any(job.truncated)


def test_alone_equals_batched_equals_permuted(case: Case) -> None:
    some = documents()[::4]
    batched = logits(case.engine, some)
    np.testing.assert_allclose([logits(case.engine, [d])[0] for d in some], batched, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits(case.engine, some[::-1]), batched[::-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["new", "xlm-roberta-flash"])
def test_adapters_on_published_names_equal_peft(tmp_path: Path, name: str) -> None:
    """The published modules are fused, so one A serves the three separate modules of the library."""
    case, (theirs, ours) = make(tmp_path, RELATIVES[name]), adapted_modules(name)
    library, own = (
        write_adapter(tmp_path / side, 3, 0.3, pairs) for side, pairs in (("peft", theirs), ("us", ours))
    )
    scores = np.array(logits(case.engine, documents(), case.engine.attach(own)))
    assert np.abs(scores - logits(case.engine, documents())).mean() > 0.05
    with torch.inference_mode():
        expected = under(case.reference, library)(**encoded(case)).logits[:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


def adapted_modules(name: str) -> tuple[Pairs, Pairs]:
    """Return one adapter under the names of the library's class and under the published names."""
    generator, theirs, ours = torch.Generator().manual_seed(1), Pairs(), Pairs()
    for i in range(LAYERS):
        a, b, down_a, down_b = (
            torch.randn(shape, generator=generator)
            for shape in ((3, SIZE), (3 * SIZE, 3), (3, 96), (SIZE, 3))
        )
        three, split, out, fused, own_out = {
            "new": (
                ("q_proj", "k_proj", "v_proj"),
                f"gte.layers.{i}.self_attn",
                f"gte.layers.{i}.mlp.down_proj",
                f"new.encoder.layer.{i}.attention.qkv_proj",
                f"new.encoder.layer.{i}.mlp.down_proj",
            ),
            "xlm-roberta-flash": (
                ("query", "key", "value"),
                f"roberta.encoder.layer.{i}.attention.self",
                f"roberta.encoder.layer.{i}.output.dense",
                f"roberta.encoder.layers.{i}.mixer.Wqkv",
                f"roberta.encoder.layers.{i}.mlp.fc2",
            ),
        }[name]
        theirs |= {f"{split}.{m}": (a, part) for m, part in zip(three, b.split(SIZE), strict=True)}
        theirs[out] = ours[own_out] = (down_a, down_b)
        ours[fused] = (a, b)
    return theirs, ours


def test_scaling_changes_scores(tmp_path: Path) -> None:
    """Without its configuration fields, the same weights give different logits."""
    case = make(tmp_path, RELATIVES["new"])
    scaled = np.array(logits(case.engine, documents()))
    edit(case.directory, {"rope_scaling": None})
    plain = logits(Engine(case.directory, device=DEVICE, dtype="float32"), documents())
    assert np.abs(scaled - plain).max() > 0.01


def edit(directory: Path, change: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("relative", "change", "named"),
    [
        ("new", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ("new", {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, "mixed_b"),
        ("new", {"pack_qkv": False}, "pack_qkv"),
        ("new", {"layer_norm_type": "rms_norm"}, "rms_norm"),
        ("new", {"logn_attention_scale": True}, "logn_attention_scale"),
        ("new", {"position_embedding_type": "absolute"}, "position_embedding_type"),
        ("xlm-roberta-flash", {"position_embedding_type": "rotary"}, "position_embeddings.weight"),
        ("xlm-roberta-flash", {"position_embedding_type": "alibi"}, "alibi"),
        ("xlm-roberta-flash", {"auto_map": None}, "embeddings.LayerNorm.weight"),
    ],
)
def test_unsupported_settings_are_named(
    tmp_path: Path, relative: str, change: dict[str, Any], named: str
) -> None:
    directory = make(tmp_path, RELATIVES[relative]).directory
    edit(directory, change)
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")
