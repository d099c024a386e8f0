"""The table of keys covers the keys that the libraries read, and every entry does as it says."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from sentence_transformers import base, cross_encoder, sentence_transformer
from sentence_transformers.multi_vector_encoder.modules import multi_vector_mask
from sentence_transformers.sparse_encoder.modules import splade_pooling
from transformers import PreTrainedConfig

from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.settings.table import Key, counts, settings_table
from sie_server.models.spec import UnsupportedCheckpoint
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import make_decoder
from support.checkpoints.encoders import make_encoder, write_json

TABLE = settings_table()
TESTS = Path(__file__).parents[2]
TYPES = [
    *(
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "distilbert",
        "electra",
        "albert",
        "mpnet",
        "modernbert",
        "lfm2",
    ),
    *("qwen2", "qwen3", "gemma", "gemma2", "llama", "mistral"),
]
STRICT = ("test_config_keys.py", "test_tokenizer_settings.py", "test_sentence_settings.py")
MODULES: dict[str, Any] = {
    "sentence_bert_config.json": base.modules.transformer.Transformer,
    "Pooling": sentence_transformer.modules.pooling.Pooling,
    "Dense": base.modules.dense.Dense,
    "LayerNorm": sentence_transformer.modules.layer_norm.LayerNorm,
    "Normalize": base.modules.normalize.Normalize,
    "Dropout": sentence_transformer.modules.dropout.Dropout,
    "LogitScore": cross_encoder.modules.logit_score.LogitScore,
    "MultiVectorMask": multi_vector_mask.MultiVectorMask,
    "SpladePooling": splade_pooling.SpladePooling,
}
REFUSED = [
    (name, key, entry)
    for name, keys in TABLE.items()
    for key, entry in keys.items()
    if entry.effect == "refused"
]


def prompted(directory: Path) -> Path:
    return make_encoder(directory, prompts={"prompts": {"query": "find: "}})


def logit_score(directory: Path) -> Path:
    """Write a causal reranker in the layout of sentence-transformers, without its chat template."""
    make_decoder(directory, "qwen3")
    kinds = {
        "": "base.modules.transformer.Transformer",
        "1_LogitScore": "cross_encoder.modules.logit_score.LogitScore",
    }
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    write_json(directory / "modules.json", entries)
    write_json(directory / "1_LogitScore" / "config.json", {"true_token_id": 5, "false_token_id": 6})
    return directory


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": lambda directory: make_cross_encoder(directory, "bert"),
    "gemma": lambda directory: make_decoder(directory, "gemma"),
    "encoder": make_encoder,
    "prompted encoder": prompted,
    "logit score": logit_score,
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_key_of_the_library_is_in_the_table(kind: str) -> None:
    found: Any = transformers.CONFIG_MAPPING[kind]
    keys = {field.name for field in dataclasses.fields(found)} | set(found().to_dict())
    keys |= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert sorted(keys - TABLE["config.json"].keys()) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_key_of_a_module_is_in_the_table(name: str) -> None:
    module = MODULES[name]
    keys = {*module.config_keys, *getattr(module, "config_key_renames", {})}
    assert keys and sorted(keys - TABLE[name].keys()) == []


def test_every_honoured_key_has_a_test() -> None:
    for name, keys in TABLE.items():
        for key, entry in keys.items():
            if entry.effect == "honoured":
                path = TESTS.parent / entry.test
                assert path.exists(), entry.test
                assert path.name not in STRICT or f'"{key}"' in path.read_text(), (
                    f"{name}: {key} in {entry.test}"
                )


@pytest.mark.parametrize(("name", "key", "entry"), REFUSED, ids=str)
def test_every_refused_key_is_refused_by_name(name: str, key: str, entry: Key, tmp_path: Path) -> None:
    directory = FAMILIES[entry.family](tmp_path)
    template = "qwen3-reranker" if entry.family == "logit score" else "bge-reranker-gemma"
    if entry.family != "prompted encoder":
        read_spec(directory, template)
    modules = json.loads((directory / "modules.json").read_text()) if not name.endswith(".json") else []
    folders = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    path = directory / folders[name] / "config.json" if modules else directory / name
    content = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, content | {key: entry.example})
    with pytest.raises(UnsupportedCheckpoint, match=entry.says or key):
        read_spec(directory, template)


def test_unknown_keys_are_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_cross_encoder(tmp_path, "bert")
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / file).read_text())
        write_json(tmp_path / file, content | {f"new_key_{i}": i for i in range(30)})
    path = tmp_path / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"image_token": "rain"})
    with caplog.at_level(logging.INFO, "sie_server.settings"):
        Engine(tmp_path, device="cpu", dtype="float32")
    [line] = caplog.messages
    assert "config.json: new_key_0, " in line and line.endswith("and 40 more") and "image_token" not in line


@pytest.mark.parametrize("family", ["bert", "gemma", "encoder", "logit score"])
def test_files_as_the_libraries_write_them_have_no_unknown_key(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sie_server.settings"):
        read_spec(FAMILIES[family](tmp_path), "bge-reranker-gemma" if family == "gemma" else "qwen3-reranker")
    assert caplog.messages == []


def test_the_page_states_the_counts() -> None:
    page = (TESTS.parent / "docs" / "settings.md").read_text()
    number = counts()
    assert (
        f"Honoured: {number['honoured']}. Refused: {number['refused']}. Without effect: {number['none']}."
        in page
    )


def test_a_refusal_names_file_value_and_reason(tmp_path: Path) -> None:
    make_cross_encoder(tmp_path, "bert")
    content = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", content | {"pruned_heads": {"0": [1]}})
    with pytest.raises(ModelLoadFailed, match=r"config\.json: pruned_heads is .*0.*not pruned"):
        Engine(tmp_path, device="cpu", dtype="float32")
