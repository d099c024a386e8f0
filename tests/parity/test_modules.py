"""Checkpoints that sentence-transformers saves as modules: rerankers with a modular head, and embedders with and
without a projection."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.modular import LIMIT, MODELS, SIZE, make_encoder, make_reranker, shaken
from support.device import DEVICE
from support.requests.jobs import run_job


def documents(words: int = 90) -> list[str]:
    rng = random.Random(8)
    return [random_text(rng, n) for n in [0, 1, 2, words, *(rng.randint(1, words) for _ in range(40))]]


def results(engine: Engine, job: Any) -> list[Any]:
    return run_job(engine, job)


def logits(engine: Engine, texts: list[str]) -> list[float]:
    return results(engine, engine.tokenize_score(ScoreTexts("rain data", texts, LIMIT)))


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modular_reranker_equals_cross_encoder(tmp_path: Path, family: str, pooling: str) -> None:
    directory, model = make_reranker(tmp_path, family, pooling)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.outputs == ["score"]
    assert engine.max_seq_length == LIMIT  # set only in tokenizer_config.json
    expected = model.predict([("rain data", d) for d in documents()], show_progress_bar=False)
    ours = logits(engine, documents())
    assert expected.std() > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    alone = [logits(engine, [d])[0] for d in documents()[:12]]
    np.testing.assert_allclose(alone, ours[:12], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits(engine, documents()[::-1]), ours[::-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_activation_comes_from_the_library_configuration(tmp_path: Path, activation: torch.nn.Module) -> None:
    directory, _ = make_reranker(tmp_path, activation=activation)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.head.activation == type(activation).__name__.lower()  # type: ignore[union-attr]
    reloaded = CrossEncoder(str(directory), device="cpu")
    assert type(reloaded.activation_fn) is type(activation)


@pytest.mark.parametrize("family", sorted(MODELS))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("project", [False, True])
def test_embedder_equals_sentence_transformers(
    tmp_path: Path, family: str, pooling: Any, project: bool
) -> None:
    modules: list[Any] = [make_encoder(tmp_path / "encoder", family), Pooling(SIZE, pooling_mode=pooling)]
    modules += [shaken(Dense(SIZE, 20)), Normalize()] if project else [Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save_pretrained(str(tmp_path / "embedder"))
    engine = Engine(tmp_path / "embedder", device=DEVICE, dtype="float32")
    assert engine.spec.outputs == ["dense"]
    assert engine.spec.dims == {"dense": 20 if project else SIZE}
    job = engine.tokenize_encode(documents(), ("dense",), engine.max_seq_length)
    ours = np.stack([result["dense"] for result in results(engine, job)])
    expected: npt.NDArray[np.float32] = model.encode(documents(), show_progress_bar=False)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("modules.json", lambda c: c[:4], "does not output 'scores'"),
        ("modules.json", lambda c: [*c, c[3] | {"idx": 5}], "LayerNorm expects vectors of width 48, got 1"),
        ("modules.json", lambda c: [*c[:2], c[2] | {"path": "../encoder"}, *c[3:]], "outside the checkpoint"),
        ("modules.json", lambda c: [c[0], c[1] | {"path": "/etc"}, *c[2:]], "'/etc', which is outside"),
        ("modules.json", lambda c: [*c, c[2] | {"type": "my.code.Module"}], "my.code.Module"),
        ("2_Dense/config.json", lambda c: c | {"activation_function": "os.system"}, "os.system"),
        ("2_Dense/config.json", lambda c: c | {"bias": True}, "linear.bias"),
        ("2_Dense/config.json", lambda c: c | {"out_features": 47}, "expects vectors of width 48, got 47"),
        ("2_Dense/config.json", lambda c: c | {"module_input_name": "token_embeddings"}, "token_embeddings"),
        ("2_Dense/config.json", lambda c: c | {"use_residual": True}, "use_residual"),
        ("3_LayerNorm/config.json", lambda c: {}, "lacks 'dimension'"),
        ("4_Dense/config.json", lambda c: c | {"bias": False}, "linear.bias"),
        (
            "config_sentence_transformers.json",
            lambda c: c | {"activation_fn": "torch.nn.Softplus"},
            "Softplus",
        ),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, file: str, change: Any, named: str) -> None:
    directory, _ = make_reranker(tmp_path)
    edit(directory / file, change)
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")


def test_a_missing_head_is_never_made_up(tmp_path: Path) -> None:
    directory, _ = make_reranker(tmp_path)
    (directory / "4_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="4_Dense"):
        Engine(directory, device=DEVICE, dtype="float32")


def test_an_unexpected_weight_is_named(tmp_path: Path) -> None:
    directory, _ = make_reranker(tmp_path)
    path = directory / "2_Dense" / "model.safetensors"
    save_file(load_file(path) | {"residual.weight": torch.ones(SIZE, SIZE)}, path)
    with pytest.raises(ModelLoadFailed, match=r"residual\.weight"):
        Engine(directory, device=DEVICE, dtype="float32")


def test_a_projection_after_normalisation_is_refused(tmp_path: Path) -> None:
    encoder, pooling = make_encoder(tmp_path / "encoder", "bert"), Pooling(SIZE, pooling_mode="mean")
    model = SentenceTransformer(modules=[encoder, pooling, Normalize(), Dense(SIZE, 20)], device="cpu")
    model.save_pretrained(str(tmp_path / "embedder"))
    with pytest.raises(ModelLoadFailed, match="after Normalize"):
        Engine(tmp_path / "embedder", device=DEVICE, dtype="float32")
