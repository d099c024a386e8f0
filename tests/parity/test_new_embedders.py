"""Embedders of the `new` architecture (gte-multilingual-base, gte-*-en-v1.5) equal transformers' `GteModel`.

gte-multilingual-base is published as the class that also has its token weights (`NewForTokenClassification`). Its two
classifier tensors are ignored by name; all other tensors must be used.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import SPECIAL_TOKENS, random_text, xlm_roberta_tokenizer
from support.checkpoints.encoders import write_json, write_modules
from support.device import DEVICE
from support.requests.jobs import run_job

LIMIT, SIZE = 120, 48
SHAPE = {
    "hidden_size": SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": LIMIT,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
CLASSIFIER = {"classifier.weight": torch.ones(1, SIZE), "classifier.bias": torch.ones(1)}


def make(
    root: Path, architecture: str, prefix: str, beside: dict[str, torch.Tensor]
) -> tuple[Path, Any, Any]:
    """Write a checkpoint as published, and return it with the library's model and tokenizer."""
    tokenizer = xlm_roberta_tokenizer()
    shape = SHAPE | {"vocab_size": tokenizer.get_vocab_size()}
    rope = {"rope_type": "default", "rope_theta": 300.0}
    torch.manual_seed(4)
    model = transformers.GteModel(
        transformers.GteConfig(**shape, rope_parameters=rope), add_pooling_layer=False
    )
    for name, parameter in model.eval().named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    model.save_pretrained(root / "library")
    saved = load_file(root / "library" / "model.safetensors")
    bare = {name.removeprefix("new.").removeprefix("gte."): tensor for name, tensor in saved.items()}
    directory = root / "published"
    directory.mkdir()
    save_file({f"{prefix}{name}": t for name, t in bare.items()} | beside, directory / "model.safetensors")
    config = {
        "architectures": [architecture],
        "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
        "model_type": "new",
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": None,
        "rope_theta": 300.0,
    }
    write_json(directory / "config.json", shape | config)
    fast = transformers.XLMRobertaTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LIMIT, **SPECIAL_TOKENS["xlm-roberta"]
    )
    fast.save_pretrained(directory)
    kinds = ("Transformer", "Pooling", "Normalize")
    write_modules(directory, *(f"sentence_transformers.models.{kind}" for kind in kinds))
    write_json(directory / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    return directory, model, fast


@pytest.mark.parametrize(
    ("architecture", "prefix", "beside"),
    [
        ("NewForTokenClassification", "new.", CLASSIFIER),
        ("NewModel", "new.", {}),
        ("NewModel", "", {}),
        (
            "NewModel",
            "",
            {"pooler.dense.weight": torch.ones(SIZE, SIZE), "pooler.dense.bias": torch.ones(SIZE)},
        ),
    ],
)
def test_embeddings_equal_transformers(
    tmp_path: Path, architecture: str, prefix: str, beside: dict[str, torch.Tensor]
) -> None:
    directory, model, tokenizer = make(tmp_path, architecture, prefix, beside)
    rng = random.Random(2)
    texts = [random_text(rng, n) for n in (0, 1, 2, 15, 16, 17, 60, 300)]
    inputs = tokenizer(texts, truncation=True, max_length=LIMIT, padding=True, return_tensors="pt")
    with torch.inference_mode():
        first = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state[
            :, 0
        ]
    expected = torch.nn.functional.normalize(first, dim=-1).numpy()
    engine = Engine(directory, device=DEVICE, dtype="float32")
    job = engine.tokenize_encode(texts, ("dense",), LIMIT)
    run_job(engine, job)
    np.testing.assert_allclose(np.stack([r["dense"] for r in job.results]), expected, atol=1e-5, rtol=0)
    assert (engine.spec.outputs, engine.spec.dims) == (["dense"], {"dense": SIZE})


@pytest.mark.parametrize(
    ("architecture", "beside", "named"),
    [
        ("NewModel", {"new.encoder.gate": torch.ones(1)}, r"1 weights this .* new\.encoder\.gate"),
        ("NewForSequenceClassification", CLASSIFIER, r"new\.pooler\.dense\.weight"),
    ],
)
def test_unknown_weights_and_a_missing_head_stop_the_load(
    tmp_path: Path, architecture: str, beside: dict[str, torch.Tensor], named: str
) -> None:
    directory, _, _ = make(tmp_path, architecture, "new.", beside)
    if architecture == "NewForSequenceClassification":
        config = transformers.PretrainedConfig.get_config_dict(directory)[0]
        write_json(directory / "config.json", config | {"num_labels": 1})
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device=DEVICE, dtype="float32")
