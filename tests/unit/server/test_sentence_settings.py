"""The settings of sentence-transformers apply where that library reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.models.checkpoints.reader import read_spec
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.encoders import make_encoder, write_json
from support.checkpoints.modular import make_reranker

TEXTS = ["RAIN falls over Zürich", "Stars BURN hydrogen " * 10]


def encoder(directory: Path, settings: dict[str, Any], file: str = "sentence_bert_config.json") -> Path:
    """Write an encoder whose tokenizer keeps upper case, so that `do_lower_case` counts."""
    make_encoder(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    write_json(directory / file, settings)
    return directory


def vectors(directory: Path) -> Any:
    engine = Engine(directory, device="cpu", dtype="float32")
    job = engine.tokenize_encode(TEXTS, ("dense",), engine.max_seq_length)
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    return np.array([result["dense"] for result in job.results])


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"do_lower_case": True}, "sentence_bert_config.json"),
        ({"do_lower_case": False, "max_seq_length": 9}, "sentence_bert_config.json"),
        ({"do_lower_case": True, "max_seq_length": 12}, "sentence_roberta_config.json"),
        ({"max_seq_length": 7}, "sentence_xlnet_config.json"),
    ],
)
def test_the_vectors_are_those_of_the_library(settings: dict[str, Any], file: str, tmp_path: Path) -> None:
    directory = encoder(tmp_path, settings, file)
    expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(vectors(directory), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            "text.method_output_name",
        ),
        ({"processing_kwargs": {"text": {"max_length": 8}}}, "processing_kwargs.text.max_length"),
        ({"processing_kwargs": {"common": {"truncation": False}}}, "processing_kwargs.common.truncation"),
        ({"tokenizer_args": {"strip_accents": False}}, "tokenizer_args"),
    ],
)
def test_settings_that_replace_others_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadFailed, match=message):
        Engine(encoder(tmp_path, settings), device="cpu", dtype="float32")


def test_harmless_settings_are_accepted(tmp_path: Path) -> None:
    settings = {"model_args": {"trust_remote_code": True, "torch_dtype": "float16"}, "unpad_inputs": False}
    settings["processing_kwargs"] = {"text": {"padding": True}}
    Engine(encoder(tmp_path, settings), device="cpu", dtype="float32")


def test_a_cross_encoder_with_modules_is_lower_cased_as_in_the_library(tmp_path: Path) -> None:
    directory, _ = make_reranker(tmp_path, "bert")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    path = directory / "sentence_bert_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    engine = Engine(directory, device="cpu", dtype="float32")
    upper, lower = ids(engine, "RAIN"), ids(engine, "rain")
    write_json(path, settings | {"do_lower_case": True})
    assert upper != lower == ids(Engine(directory, device="cpu", dtype="float32"), "RAIN")


def ids(engine: Engine, query: str) -> list[int]:
    [work] = engine.tokenize_plain(ScoreTexts(query, ["stars"], 50)).work
    return work.tokens.ids.tolist()


@pytest.mark.parametrize(("prompt", "refused"), [("find: ", True), ("", False)])
def test_a_default_prompt_of_a_cross_encoder_is_refused(prompt: str, refused: bool, tmp_path: Path) -> None:
    make_cross_encoder(tmp_path, "bert")
    named = {"prompts": {"web": prompt}, "default_prompt_name": "web"}
    write_json(tmp_path / "config_sentence_transformers.json", named)
    if refused:
        with pytest.raises(ModelLoadFailed, match="default_prompt_name"):
            Engine(tmp_path, device="cpu", dtype="float32")
    else:
        Engine(tmp_path, device="cpu", dtype="float32")


@pytest.mark.parametrize(("name", "limit"), [("model_max_length", 40), ("max_len", 33)])
def test_the_limit_has_an_older_name(name: str, limit: int, tmp_path: Path) -> None:
    make_cross_encoder(tmp_path, "bert")
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]
    write_json(path, settings | {name: limit})
    assert read_spec(tmp_path).max_seq_length == limit


LONG = "rain falls over the quiet harbour " * 4
CUT_LEFT = {"direction": "Left", "max_length": 10, "strategy": "LongestFirst", "stride": 0}


def edit(directory: Path, name: str, **keys: Any) -> None:
    path = directory / name
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | keys)


def saved_by_the_library(directory: Path, **settings: Any) -> None:
    """Save as version 6 does, with modules.json."""
    CrossEncoder(str(directory), device="cpu").save_pretrained(str(directory))
    edit(directory, "sentence_bert_config.json", **settings)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: saved_by_the_library(d, max_seq_length=20),
        lambda d: [saved_by_the_library(d, max_seq_length=None), edit(d, "config.json", architectures=None)],
        lambda d: [saved_by_the_library(d), edit(d, "config.json", architectures=["BertModel"])],
        lambda d: edit(d, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
        lambda d: edit(d, "tokenizer_config.json", tokenizer_class="SomethingTokenizer"),
        lambda d: edit(d, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"]),
        lambda d: edit(d, "tokenizer.json", truncation=CUT_LEFT),
    ],
    ids=["limit", "no class", "another class", "generic", "unknown", "no types", "cut at the start"],
)
def test_a_cross_encoder_scores_pairs_as_the_library_does(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    directory = make_cross_encoder(tmp_path, "bert", max_length=48)
    change(directory)
    texts = [LONG + "stars", "stars burn hydrogen"]
    engine = Engine(directory, device="cpu", dtype="float32")
    job = engine.tokenize_score(ScoreTexts("stars and rain", texts, engine.max_seq_length))
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
    library: Any = CrossEncoder(str(directory), device="cpu")
    pairs = [("stars and rain", text) for text in texts]
    expected = library.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(job.results, expected, atol=1e-4)
