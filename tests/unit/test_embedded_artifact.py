"""The embedded model's files are complete, small enough, and equal the output of the build script."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # training/ is a folder of scripts, not a distribution

from training import build_mini_en as build  # noqa: E402
from training import card, idf  # noqa: E402

MODEL = build.OUTPUT
SPECIAL = (0, 101, 102, 103)  # [PAD] [CLS] [SEP] [MASK]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(MODEL / "model.safetensors")


@pytest.fixture(scope="module")
def upstream() -> Path:
    pytest.importorskip(build.PACKAGE, reason="the upstream encoder is not installed")
    return build.upstream_folder()


def scorer() -> dict[str, Any]:
    constants: dict[str, Any] = json.loads((MODEL / "sie_scorer.json").read_bytes())
    return constants


def test_the_folder_holds_these_files_and_fits_the_package() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "sie_scorer.json", "README.md"}
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= build.MAX_BYTES


def test_config_and_tokenizer_are_the_build_scripts(upstream: Path) -> None:
    assert (MODEL / "config.json").read_bytes() == build.build_config(upstream)
    assert (MODEL / "tokenizer.json").read_bytes() == build.build_tokenizer(upstream)


def test_the_encoder_is_upstreams_in_bf16(upstream: Path, tensors: dict[str, torch.Tensor]) -> None:
    expected = build.build_encoder(upstream)
    assert set(tensors) == {*expected, build.TOKEN_WEIGHTS}
    for name, tensor in expected.items():
        assert tensors[name].dtype == torch.bfloat16
        assert torch.equal(tensors[name], tensor), name


def test_no_pooler_and_no_buffers(tensors: dict[str, torch.Tensor]) -> None:
    assert not [name for name in tensors if "pooler" in name or "position_ids" in name]
    assert tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
    assert tensors["encoder.layer.5.output.dense.weight"].shape == (384, 1536)


def test_the_config_names_no_machine() -> None:
    config = json.loads((MODEL / "config.json").read_bytes())
    assert config["model_type"] == "bert" and config["architectures"] == ["BertModel"]
    assert not set(config) & set(build.CONFIG_NOISE)
    assert not [value for value in config.values() if isinstance(value, str) and "/" in value]


def test_the_tokenizer_neither_cuts_nor_pads() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert tokenizer.truncation is None and tokenizer.padding is None
    assert len(tokenizer.encode("word " * 600).ids) == 602
    assert tuple(tokenizer.token_to_id(token) for token in idf.TEMPLATE_TOKENS) == SPECIAL


def test_token_weights(tensors: dict[str, torch.Tensor]) -> None:
    weights = tensors[build.TOKEN_WEIGHTS]
    assert weights.shape == (30522,) and weights.dtype == torch.float32
    assert torch.equal((weights == 0).nonzero().flatten(), torch.tensor(SPECIAL))
    assert weights.min() == 0 and weights.max() == 1
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    the, model, insulin = (
        float(weights[tokenizer.token_to_id(word)]) for word in ("the", "model", "insulin")
    )
    assert the < model < insulin


def test_scorer_constants_are_complete_and_described() -> None:
    assert scorer() == build.SCORER
    assert set(scorer()) == set(card.MEANING)
    text = (MODEL / "README.md").read_text(encoding="utf-8")
    for key, value in scorer().items():
        assert f"| `{key}` | `{value}` |" in text
    for name, licence in card.SOURCES.values():
        assert name in text and licence in text


def test_an_unlisted_collection_stops_the_card() -> None:
    with pytest.raises(KeyError, match="unheard-of"):
        card.render(build.SCORER, 0.5, {"unheard-of": 1}, {})


def test_idf_by_hand() -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    counts = idf.count_documents(tokenizer, ["a a b", "a c", "a"])
    assert counts.tolist() == [0, 3, 1, 1, 0]  # documents, not occurrences
    table = idf.inverse_document_frequency(counts, 3)
    highest = math.log(1 + 3.5 / 0.5)  # document frequency 0
    expected = [1.0, math.log(1 + 0.5 / 3.5) / highest, math.log(1 + 2.5 / 1.5) / highest]
    np.testing.assert_allclose(table[:3], expected, rtol=1e-12)
    weights = idf.token_weights(table, silent=[0], power=0.5)
    np.testing.assert_allclose(weights, [0, *np.sqrt(expected[1:]), math.sqrt(expected[2]), 1], rtol=1e-6)


def test_documents_are_counted_once_across_collections(tmp_path: Path) -> None:
    import gzip

    for name, texts in {"one": ["x", "y", "x"], "two": ["y", "z"]}.items():
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        rows = [json.dumps({"_id": str(i), "title": "", "text": text}) for i, text in enumerate(texts)]
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    documents, added = build.distinct_documents(tmp_path)
    assert documents == ["x", "y", "z"]
    assert added == {"one": 2, "two": 1}
