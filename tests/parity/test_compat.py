"""Sequence classifiers without a family of their own, run through transformers, against the library called directly."""

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

from checkpoints import SPECIAL_TOKENS, bert_tokenizer, random_text, xlm_roberta_tokenizer
from sie_server.catalog import catalog
from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from sie_server.serving.slots import Slot

LIMIT = 100  # no multiple of 16: slots are longer than the position tables
# family → what its configuration says beyond the common shape
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "deberta-v2": (  # as mxbai-rerank-v1
        transformers.DebertaV2Config,
        transformers.DebertaV2ForSequenceClassification,
        {
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 16,
            "max_relative_positions": -1,
            "pooler_hidden_size": 48,
            "pooler_hidden_act": "gelu",
        },
    ),
    "electra": (
        transformers.ElectraConfig,
        transformers.ElectraForSequenceClassification,
        {"type_vocab_size": 2, "embedding_size": 24},
    ),
    "camembert": (  # positions count from the padding token's
        transformers.CamembertConfig,
        transformers.CamembertForSequenceClassification,
        {"type_vocab_size": 1},
    ),
}


def make(directory: Path, family: str) -> Path:
    config_class, model_class, more = MODELS[family]
    camembert = family == "camembert"
    tokenizer = xlm_roberta_tokenizer() if camembert else bert_tokenizer()
    pad = 1 if camembert else 0
    torch.manual_seed(2)
    config = config_class(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=LIMIT + (pad + 1 if camembert else 0),
        pad_token_id=pad,
        num_labels=1,
        **more,
    )
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25 if parameter.ndim > 1 else 0.1)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1.0
    model.save_pretrained(directory)
    tokenizer_class = transformers.XLMRobertaTokenizerFast if camembert else transformers.BertTokenizerFast
    special = SPECIAL_TOKENS["roberta" if camembert else "bert"]
    fast = tokenizer_class(tokenizer_object=tokenizer, model_max_length=LIMIT, **special)
    fast.save_pretrained(directory)
    return directory


def documents() -> list[str]:
    rng = random.Random(9)
    return [random_text(rng, n) for n in [*range(0, 60, 3), 200, *(rng.randint(1, 60) for _ in range(20))]]


def logits(engine: Engine, texts: list[str]) -> list[float]:
    job = engine.tokenize_score("rain data", texts, LIMIT)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return job.results


def reference(directory: Path) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(
        ["rain data"] * len(documents()),
        documents(),
        truncation="only_second",
        max_length=LIMIT,
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        return model(**encoded).logits[:, 0].numpy()


@pytest.mark.parametrize("family", sorted(MODELS))
def test_logits_equal_transformers(tmp_path: Path, family: str) -> None:
    directory = make(tmp_path, family)
    engine = Engine(directory, device="cpu", dtype="bfloat16")  # computed in fp32 all the same
    assert engine.spec.compat
    assert engine.spec.backbone.max_length == LIMIT
    ours, expected = logits(engine, documents()), reference(directory)
    assert expected.std() > 0.05
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose([logits(engine, [d])[0] for d in documents()], ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits(engine, documents()[::-1]), ours[::-1], atol=1e-4, rtol=0)


def test_a_missing_head_is_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = make(tmp_path, "deberta-v2")
    weights = load_file(directory / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ModelLoadFailed, match=r"classifier\.weight"):
        Engine(directory, device="cpu")


def test_without_the_extra_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make(tmp_path, "deberta-v2")
    for name in [n for n in sys.modules if n.partition(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelLoadFailed, match=r"pip install 'sie-server\[compat\]'"):
        Engine(directory, device="cpu")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["DebertaV2ForTokenClassification"]}, "does not serve"),
        ({"architectures": ["MyForSequenceClassification"]}, "does not serve"),
        ({"model_type": "xlnet"}, "xlnet"),
        ({"pad_token_id": None}, "pad_token_id"),
        ({"num_labels": 3}, "3 labels"),
    ],
)
def test_what_cannot_be_served_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    directory = make(tmp_path, "deberta-v2")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelLoadFailed, match=named):
        Engine(directory, device="cpu")


def test_the_model_list_marks_what_runs_through_the_library() -> None:
    marked = {name: Slot(model).info().compat for name, model in catalog().items()}
    assert marked["mixedbread-ai/mxbai-rerank-base-v1"]
    assert not marked["BAAI/bge-reranker-base"]
