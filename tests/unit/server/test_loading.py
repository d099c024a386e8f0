"""Loading is strict: no missing, unused or invented weights, and no code of a checkpoint runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import make_cross_encoder
from support.device import DEVICE


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_cross_encoder(tmp_path / "model", "bert", max_length=64)


def load(directory: Path) -> Engine:
    return Engine(directory, device=DEVICE, dtype="float32")


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "name", ["classifier.weight", "bert.pooler.dense.bias", "bert.encoder.layer.1.output.dense.weight"]
)
def test_a_missing_weight_is_named(checkpoint: Path, name: str) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelLoadFailed, match=name):
        load(checkpoint)


def test_a_left_over_weight_is_named(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update({"bert.encoder.layer.3.extra": torch.ones(2)}))
    with pytest.raises(ModelLoadFailed, match=r"bert\.encoder\.layer\.3\.extra"):
        load(checkpoint)


def test_an_old_position_buffer_is_harmless(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda t: t.update({"bert.embeddings.position_ids": torch.arange(64)[None]}))
    assert load(checkpoint).spec.outputs == ["score"]


def test_a_wrong_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update({"classifier.weight": torch.ones(2, 48)}))
    with pytest.raises(ModelLoadFailed, match=r"classifier.weight.*\[2, 48\].*\[1, 48\]"):
        load(checkpoint)


def test_fewer_layers_in_the_config_than_in_the_file_refuse(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=2)
    with pytest.raises(ModelLoadFailed, match=r"encoder\.layer\.2"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*BertForSequenceClassification"),
        ({"architectures": ["BertModel"]}, "without a head"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "3 labels"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({"sbert_ce_default_activation_function": "my.code.Evil"}, "my.code.Evil"),
        ({"is_decoder": True}, "causal"),
    ],
)
def test_unsupported_settings_are_named(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(checkpoint, **changes)
    with pytest.raises(ModelLoadFailed, match=message):
        load(checkpoint)


def test_a_config_without_a_field_names_it(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["hidden_size"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadFailed, match="hidden_size"):
        load(checkpoint)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_broken_config_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(ModelLoadFailed, match=r"config\.json"):
        load(checkpoint)


@pytest.mark.parametrize("keep", [0, 7, 100, -100])
def test_a_truncated_weight_file_is_named(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelLoadFailed, match=r"model\.safetensors"):
        load(checkpoint)


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="no weights"):
        load(checkpoint)


def scores(directory: Path) -> list[float]:
    engine = load(directory)
    return engine.run(engine.tokenize_score(ScoreTexts("rain", ["stars burn", "rain falls"], 64)).work)


def test_a_plain_bin_file_gives_the_same_scores(checkpoint: Path) -> None:
    expected = scores(checkpoint)
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert scores(checkpoint) == expected


def test_shards_give_the_same_scores(checkpoint: Path) -> None:
    expected = scores(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(where.values()):
        save_file({name: t for name, t in tensors.items() if where[name] == shard}, checkpoint / shard)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert scores(checkpoint) == expected
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadFailed, match="00002-of-00002"):
        load(checkpoint)


class Payload:
    """An object that creates a file if a loader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_bin_file_with_code_in_it_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Payload(marker)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelLoadFailed, match="code is never run"):
        load(checkpoint)
    assert not marker.exists()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ModelLoadFailed):
        load(checkpoint)
    assert not marker.exists()


def test_more_tokens_than_rows_refuse(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"extra{i}": size + i for i in range(3)}
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelLoadFailed, match="embedding table"):
        load(checkpoint)
