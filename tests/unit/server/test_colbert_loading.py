"""ColBERT checkpoints load strictly: each setting of a file is applied or refused by name, never guessed."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import scaled_dot_product_attention

from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from sie_server.models.batch import Tokens
from sie_server.models.layers.attention.full import attention
from sie_server.models.packing import pack
from sie_server.models.spec import LateInteractionSpec
from support.checkpoints.colbert import make_pylate, make_stanford
from support.device import DEVICE

METADATA = {"dim": 16, "query_maxlen": 20, "doc_maxlen": 40}


def load(directory: Path) -> Engine:
    return Engine(directory, device=DEVICE, dtype="float32")


def head(directory: Path) -> LateInteractionSpec:
    spec = load(directory).spec.head
    assert isinstance(spec, LateInteractionSpec)
    return spec


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config_sentence_transformers.json", {"query_prefix": "[X] "}, r"no token '\[X\] '"),
        ("config_sentence_transformers.json", {"query_length": "32"}, "query_length is '32'"),
        ("config_sentence_transformers.json", {"document_length": True}, "document_length is True"),
        ("config_sentence_transformers.json", {"skiplist_words": "!"}, "skiplist_words"),
        ("config_sentence_transformers.json", {"query_length": 0}, "query_length is 0"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "p", "prompts": {"p": "search: "}},
            "default prompt",
        ),
        ("1_Dense/config.json", {"activation_function": "my.Tanh"}, "my.Tanh"),
        ("1_Dense/config.json", {"in_features": 47}, "in_features is 47.*width 48"),
        ("1_Dense/config.json", {"out_features": 23}, r"linear\.weight.*\[24, 48\].*\[23, 48\]"),
        ("1_Dense/config.json", {"bias": True}, r"linear\.bias"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side"),
        ("tokenizer_config.json", {"mask_token": None, "eos_token": None}, "mask_token"),
    ],
)
def test_pylate_refusals(tmp_path: Path, file: str, changes: dict[str, Any], message: str) -> None:
    directory = make_pylate(tmp_path / "model", "bert")
    edit(directory / file, **changes)
    with pytest.raises(ModelLoadFailed, match=message):
        load(directory)


def test_a_projection_that_is_missing_is_never_made_up(tmp_path: Path) -> None:
    pylate, stanford = make_pylate(tmp_path / "p", "bert"), make_stanford(tmp_path / "s", "bert", METADATA)
    (pylate / "1_Dense" / "model.safetensors").unlink()
    edit_weights(stanford / "model.safetensors", lambda tensors: tensors.pop("linear.weight"))
    for directory, message in ((pylate, "no weights in .*1_Dense"), (stanford, r"lacks.*'linear\.weight'")):
        with pytest.raises(ModelLoadFailed, match=message):
            load(directory)


@pytest.mark.parametrize("path", ["..", "a/b", "/tmp"])
def test_modules_stay_inside_the_checkpoint(tmp_path: Path, path: str) -> None:
    directory = make_pylate(tmp_path / "model", "bert")
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["path"] = path
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelLoadFailed, match="path"):
        load(directory)


def test_another_width_or_backbone_is_named(tmp_path: Path) -> None:
    directory = make_stanford(tmp_path / "s", "bert", METADATA)
    edit(directory / "artifact.metadata", dim=17)
    with pytest.raises(ModelLoadFailed, match=r"linear\.weight.*\[16, 48\].*\[17, 48\]"):
        load(directory)
    edit(directory / "config.json", model_type="deberta-v2")
    with pytest.raises(ModelLoadFailed, match=r"HF_ColBERT/deberta-v2.*HF_ColBERT/bert"):
        load(directory)


def test_lfm2_reads_both_spellings_of_its_layers(tmp_path: Path) -> None:
    directory = make_pylate(tmp_path / "model", "lfm2")
    spec = load(directory).spec.backbone
    edit(directory / "config.json", layer_types=None, full_attn_idxs=[2, 4])
    assert load(directory).spec.backbone == spec
    edit(directory / "config.json", full_attn_idxs=[2])
    with pytest.raises(ModelLoadFailed, match=r"lacks.*layers\.4\.conv"):
        load(directory)
    edit(directory / "config.json", layer_types=["conv", "mamba"])
    with pytest.raises(ModelLoadFailed, match="5 times 'full_attention' or 'conv'"):
        load(directory)


def test_pylates_file_wins_over_stanfords(tmp_path: Path) -> None:
    """As in PyLate, its own file comes first, then `artifact.metadata`, then defaults; null counts as absent."""
    directory = make_stanford(tmp_path / "s", "bert", METADATA)
    assert (head(directory).query_length, load(directory).max_seq_length) == (20, 40)
    own = {"query_length": 12, "document_length": None, "skiplist_words": ["-"], "query_prefix": "[unused1]"}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(own))
    spec = head(directory)
    assert (spec.query_length, load(directory).max_seq_length) == (12, 40)
    assert (spec.query_marker, spec.document_marker) == ("[unused1]", "[unused1]")
    assert spec.skip_words == ("-",)
    (directory / "config_sentence_transformers.json").unlink()
    edit(directory / "artifact.metadata", query_maxlen=None)
    assert head(directory).query_length == 32
    assert head(directory).skip_words == tuple(string.punctuation)


def test_skip_words_outside_the_vocabulary_are_ignored(tmp_path: Path) -> None:
    """They would map to the unknown token, and every unknown word of a document would be skipped."""
    directory = make_pylate(tmp_path / "model", "bert", skiplist_words=["-", "notaword"])
    engine = load(directory)
    job = engine.tokenize_encode(["rain - ☃ rain"], ("multivector",), 40)
    [result] = engine.run(job.work)
    assert len(result["multivector"]) == len(job.work[0].tokens) - 1


def test_no_marker_when_the_prefix_is_empty(tmp_path: Path) -> None:
    with_one = load(make_pylate(tmp_path / "a", "bert"))
    without = load(make_pylate(tmp_path / "b", "bert", document_prefix=""))
    ids = [e.tokenize_encode(["rain"], ("multivector",), 40).work[0].tokens.ids for e in (with_one, without)]
    assert np.delete(ids[0], 1).tolist() == ids[1].tolist()


@pytest.mark.parametrize("align", [1, 16])
def test_unseen_tokens_attend_but_are_not_attended_to(align: int) -> None:
    """The key mask ends at `seen` in a slot of any length, and every row still has an output."""
    torch.manual_seed(0)
    shapes = [(16, 5), (16, None), (16, 16), (9, 3), (33, 1), (7, None)]
    sequences = [Tokens(np.ones(n, np.int32), n, seen) for n, seen in shapes]
    batch = pack(sequences, pad_id=0, align=align, device=torch.device("cpu"), dtype=torch.float32)
    q, k, v = torch.randn(batch.rows, 3, 2, 4).unbind(1)
    ours = attention(q, k, v, batch)
    for start, length, index in zip(batch.starts, batch.lengths, batch.order, strict=True):
        rows, keys = slice(start, start + length), slice(start, start + (shapes[index][1] or length))
        alone = [x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
        expected = scaled_dot_product_attention(*alone)[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(ours[rows], expected, atol=1e-5, rtol=1e-5)
