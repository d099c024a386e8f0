"""Embedding models give the vectors of sentence-transformers for every class, name and format of their weights.

The library takes the class of `model_type` without a head (`AutoModel`), so `architectures` and a head that training
has left in the file have no effect.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from support.checkpoints.encoders import write_json
from support.checkpoints.library import make_library_embedder
from support.device import DEVICE
from support.families.adapters import make_adapter, under
from support.requests.jobs import run_job

TEXTS = ["", "rain", "stars burn hydrogen into helium " * 9, "why proteins fold", "data " * 150]
TRAINED = (
    ("albert", "ForPreTraining"),
    ("bert", "ForPreTraining"),
    ("bert", "ForSequenceClassification"),
    ("camembert", "ForMaskedLM"),
    ("deberta-v2", "ForMaskedLM"),
    ("distilbert", "ForMaskedLM"),
    ("electra", "ForPreTraining"),
    ("modernbert", "ForMaskedLM"),
    ("mpnet", "ForMaskedLM"),
    ("roberta", "ForMaskedLM"),
    ("xlm-roberta", "ForTokenClassification"),
)


def vectors(directory: Path, texts: list[str] = TEXTS) -> np.ndarray[Any, Any]:
    engine = Engine(directory, device=DEVICE, dtype="float32")
    job = engine.tokenize_encode(texts, ("dense",), engine.max_seq_length)
    run_job(engine, job)
    found = np.stack([result["dense"] for result in job.results])
    assert engine.spec.dims == {"dense": found.shape[1]}
    return found


def assert_equal_to_the_library(directory: Path) -> None:
    expected = (
        SentenceTransformer(str(directory), device="cpu").float().encode(TEXTS, show_progress_bar=False)
    )
    assert expected.std() > 0.05
    np.testing.assert_allclose(vectors(directory), expected, atol=1e-4, rtol=0)


def named(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


@pytest.mark.parametrize(("family", "suffix"), TRAINED)
def test_the_head_of_training_has_no_effect(
    tmp_path: Path, family: str, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = make_library_embedder(tmp_path / "made", family, suffix)
    with caplog.at_level(logging.INFO, "sie_server.weights"):
        assert_equal_to_the_library(directory)
    ours = [record.getMessage() for record in caplog.records if record.name == "sie_server.weights"]
    assert len(ours) == 1 and "not read" in ours[0]


@pytest.mark.parametrize("name", ["BertForMaskedLM", "DistilBertForQuestionAnswering", "MyOwnModel", None])
def test_bare_tensors_are_read_under_any_class(tmp_path: Path, name: str | None) -> None:
    directory = make_library_embedder(tmp_path / "made", "distilbert")
    named(directory, architectures=[name] if name else None)
    assert_equal_to_the_library(directory)


@pytest.mark.parametrize(("family", "prefix"), [("mpnet", "mpnet."), ("electra", "electra.")])
def test_names_may_have_the_prefix_of_a_class_with_a_head(tmp_path: Path, family: str, prefix: str) -> None:
    directory = make_library_embedder(tmp_path / "made", family)
    rewrite(directory, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    assert_equal_to_the_library(directory)


Tensors = dict[str, torch.Tensor]


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def test_an_adapter_of_the_bare_model_fits_a_file_with_a_head(tmp_path: Path) -> None:
    directory = make_library_embedder(tmp_path / "made", "distilbert", "ForMaskedLM")
    base = transformers.AutoModel.from_pretrained(directory)
    make_adapter(base, tmp_path / "adapter", r=4, target_modules=["q_lin", "lin1"])
    model = under(transformers.AutoModel.from_pretrained(directory), tmp_path / "adapter")
    engine = Engine(directory, device=DEVICE, dtype="float32")
    adapter = engine.attach(tmp_path / "adapter")
    job = engine.tokenize_encode(TEXTS, ("dense",), engine.max_seq_length, adapter=adapter)
    run_job(engine, job)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for text, result in zip(TEXTS, job.results, strict=True):
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(result["dense"], expected, atol=1e-4, rtol=0)
    assert np.abs(np.stack([result["dense"] for result in job.results]) - vectors(directory)).max() > 0.01


def old_norms(tensors: Tensors) -> Tensors:
    """Return the names of checkpoints converted from TensorFlow, with a buffer of old versions."""
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed | {"bert.embeddings.position_ids": torch.arange(100)[None]}


def one_bin(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    torch.save(
        old_norms({f"bert.{name}": tensor for name, tensor in tensors.items()}),
        directory / "pytorch_model.bin",
    )


def sharded_bin(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, directory / file)
    write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": places})


def half_bin(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, directory / "pytorch_model.bin")
    named(directory, torch_dtype="float16")


@pytest.mark.parametrize("write", [one_bin, sharded_bin, half_bin])
def test_old_formats_are_read(tmp_path: Path, write: Callable[[Path], None]) -> None:
    directory = make_library_embedder(tmp_path / "made", "bert")
    write(directory)
    (directory / "model.safetensors").unlink()
    assert_equal_to_the_library(directory)


def test_both_names_of_a_norm_are_refused(tmp_path: Path) -> None:
    directory = make_library_embedder(tmp_path / "made", "bert")
    rewrite(directory, lambda t: t | {"embeddings.LayerNorm.gamma": torch.ones(48)})
    with pytest.raises(ModelLoadFailed, match=r"both .*LayerNorm\.gamma"):
        Engine(directory, device=DEVICE)


@pytest.mark.parametrize(
    "extra",
    [
        "encoder.layer.0.attention.attn.gate.weight",
        "mpnet.embeddings.more",
        "encoder.layer.7.output.dense.bias",
    ],
)
def test_unknown_weights_inside_the_encoder_stop_the_load(tmp_path: Path, extra: str) -> None:
    prefixed = extra.startswith("mpnet.")
    directory = make_library_embedder(tmp_path / "made", "mpnet", "ForMaskedLM" if prefixed else "Model")
    rewrite(directory, lambda tensors: tensors | {extra: torch.ones(3)})
    with pytest.raises(ModelLoadFailed, match=f"does not use: {extra}"):
        Engine(directory, device=DEVICE)


POOLINGS: tuple[Any, ...] = (
    {"pooling_mode": "max"},
    {"pooling_mode": "weightedmean"},
    {"pooling_mode": "mean_sqrt_len_tokens"},
    {"pooling_mode": "lasttoken"},
    {"pooling_mode": ["mean", "cls", "lasttoken"]},
    {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": False},
    {"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False},
    {},
)


@pytest.mark.parametrize("pooling", POOLINGS, ids=json.dumps)
def test_poolings_equal_the_library(tmp_path: Path, pooling: dict[str, Any]) -> None:
    directory = make_library_embedder(tmp_path / "made", "distilbert")
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, **pooling})
    assert_equal_to_the_library(directory)


def test_a_dropout_module_does_nothing(tmp_path: Path) -> None:
    directory = make_library_embedder(tmp_path / "made", "electra")
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    kind = "sentence_transformers.models.Dropout"
    write_json(
        directory / "modules.json", [*modules, {"idx": 2, "name": "2", "path": "2_Dropout", "type": kind}]
    )
    write_json(directory / "2_Dropout" / "config.json", {"dropout": 0.5})
    assert_equal_to_the_library(directory)


@pytest.mark.parametrize(
    ("family", "change", "complaint"),
    [
        ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        ("albert", {"num_hidden_groups": 9}, "num_hidden_groups"),
        ("albert", {"inner_group_num": 900}, "inner_group_num"),
        ("albert", {"embedding_size": 0}, "embedding_size"),
        ("electra", {"is_decoder": True}, "causal"),
        ("distilbert", {"activation": "swish2"}, "swish2"),
        ("distilbert", {"dim": 47}, "num_attention_heads"),
    ],
)
def test_settings_that_would_give_other_vectors_are_refused(
    tmp_path: Path, family: str, change: dict[str, Any], complaint: str
) -> None:
    directory = make_library_embedder(tmp_path / "made", family)
    named(directory, **change)
    with pytest.raises(ModelLoadFailed, match=complaint):
        Engine(directory, device=DEVICE)


def test_without_modules_an_encoder_is_refused(tmp_path: Path) -> None:
    directory = make_library_embedder(tmp_path / "made", "mpnet")
    (directory / "modules.json").unlink()
    shutil.rmtree(directory / "1_Pooling")
    with pytest.raises(ModelLoadFailed, match="no modules"):
        Engine(directory, device=DEVICE)
