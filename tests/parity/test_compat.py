"""Sequence classifiers that the server runs through transformers give the logits of the library called directly."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from sie_server.catalog import catalog
from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.families.encoders.compat import ENCODERS
from sie_server.serving.lifecycle.slots import Slot
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.encoders import write_json, write_modules
from support.checkpoints.library import (
    COMPAT,
    LIMIT,
    SHAPE,
    make_library_classifier,
    make_library_embedder,
    roughened,
    save_tokenizer,
)
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


# model type → configuration beyond the common shape; another type has that shape only
NARROW = {"embedding_size": 48}
WITHOUT_PADDING = {"pad_token_id": None}
T5 = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
ENCODER_FIELDS: dict[str, dict[str, Any]] = {
    "bloom": WITHOUT_PADDING,
    "convbert": NARROW,
    "gpt2": WITHOUT_PADDING,
    "gpt_neo": WITHOUT_PADDING | {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gpt_neox": WITHOUT_PADDING,
    "gptj": WITHOUT_PADDING | {"rotary_dim": 8},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 24, "true_hidden_size": 24},
    "mt5": T5,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 48},
    "rembert": {"input_embedding_size": 32},
    "roformer": NARROW,
    "squeezebert": NARROW,
    "t5": T5,
    "umt5": T5,
}


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_every_listed_encoder_equals_sentence_transformers(tmp_path: Path, kind: str) -> None:
    fields = {"pad_token_id": 0, "vocab_size": 400, "max_position_embeddings": LIMIT + 1, **SHAPE}
    config = transformers.CONFIG_MAPPING[kind](**{**fields, **ENCODER_FIELDS.get(kind, {})})
    torch.manual_seed(4)
    model = roughened(getattr(transformers, ENCODERS[kind])(config).eval())
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "distilbert")
    write_modules(
        tmp_path, "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
    )
    write_json(tmp_path / "1_Pooling/config.json", {"word_embedding_dimension": 48, "pooling_mode": "mean"})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": LIMIT})
    texts = [random_text(random.Random(n), n) for n in (0, 1, 7, 30, 31, 150)]
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(texts, batch_size=1)
    engine = Engine(tmp_path, device=DEVICE)
    job = engine.tokenize_encode(texts, ("dense",), LIMIT)
    found = np.stack([result["dense"] for result in run_job(engine, job)])
    assert engine.spec.compat and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std(), rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("deberta-v2", "embeddings.position_embeddings.weight"),
        ("convbert", "generator_lm_head.bias"),
    ],
)
def test_tensors_that_the_library_ignores_have_no_effect(tmp_path: Path, family: str, buffer: str) -> None:
    directory = make_library_embedder(tmp_path, family)
    path = directory / "model.safetensors"
    save_file(load_file(path) | {buffer: torch.ones(2, 2)}, path, {"format": "pt"})
    assert Engine(directory, device=DEVICE).spec.bare


def test_a_missing_head_is_never_made_up(tmp_path: Path) -> None:
    directory = make_library_classifier(tmp_path, "deberta-v2")
    weights = load_file(directory / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelLoadFailed, match=r"classifier\.weight"):
        Engine(directory, device=DEVICE)


@pytest.mark.parametrize("make", [make_library_classifier, make_library_embedder])
def test_without_the_extra_the_message_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, str], Path]
) -> None:
    directory = make(tmp_path, "deberta-v2")
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
