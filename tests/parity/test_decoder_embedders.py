"""Decoders as embedders: last-token vectors equal those of sentence-transformers, in each published layout."""

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
from sentence_transformers import SentenceTransformer

from sie_server.engine.engine import Engine
from sie_server.errors import ModelLoadFailed
from sie_server.verify.verify import verify
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import make_decoder
from support.checkpoints.embedders import LIMIT, TASK, make_embedder
from support.checkpoints.encoders import write_json
from support.device import DEVICE
from support.requests.jobs import run_job
from support.servers.inprocess import asking, post

LAST_TOKEN = {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}
TEXTS = [random_text(random.Random(i), n) for i, n in enumerate((0, 1, 2, 7, 15, 16, 17, 40, 300))] + [
    "Zürich 東京?"
]


def vectors_of(engine: Engine, texts: list[str]) -> npt.NDArray[np.float32]:
    job = engine.tokenize_encode(texts, ("dense",), LIMIT, is_query=False)
    run_job(engine, job)
    return np.stack([result["dense"] for result in job.results])


@pytest.mark.parametrize(
    ("family", "layout"),
    [(family, "bare") for family in ("qwen3", "qwen2", "mistral", "llama", "gemma")]
    + [("qwen3", "qwen3-embedding"), ("qwen3", "causal"), ("mistral", "causal")],
)
def test_vectors_equal_sentence_transformers(tmp_path: Path, family: str, layout: str) -> None:
    directory = make_embedder(tmp_path, family, layout=layout)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.outputs == ["dense"] and engine.readout == "last"
    reference = SentenceTransformer(str(directory), device="cpu")
    expected = reference.encode(TEXTS, batch_size=4, show_progress_bar=False)
    ours = vectors_of(engine, TEXTS)
    print(family, layout, "max |Δ|", np.abs(ours - expected).max())
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert (ours * expected).sum(1).min() >= 0.99999
    apart = np.abs(expected[:, None] - expected[None]).max(2)[np.triu_indices(len(TEXTS), 1)]
    assert apart.min() > 0.01  # equal vectors would prove nothing

    alone = np.concatenate([vectors_of(engine, [text]) for text in TEXTS])
    shuffled = random.Random(3).sample(range(len(TEXTS)), len(TEXTS))
    permuted = vectors_of(engine, [TEXTS[i] for i in shuffled])
    np.testing.assert_allclose(alone, ours, atol=1e-4, rtol=0)
    np.testing.assert_allclose(permuted, ours[shuffled], atol=1e-4, rtol=0)


def test_the_appended_token_survives_truncation(tmp_path: Path) -> None:
    engine = Engine(make_embedder(tmp_path, "qwen3"), device=DEVICE, dtype="float32")
    job = engine.tokenize_encode(TEXTS, ("dense",), LIMIT, is_query=False)
    ends = {engine.tokens(work.tokens.ids.tolist())[-1] for work in job.work}
    assert ends == {"<|endoftext|>"} and any(job.truncated) and not all(job.truncated)
    assert max(len(work.tokens) for work in job.work) == LIMIT


def test_queries_get_the_prompt_and_an_instruction_replaces_it(tmp_path: Path) -> None:
    directory = make_embedder(tmp_path, "qwen3", layout="qwen3-embedding")
    reference = SentenceTransformer(str(directory), device="cpu")
    told = "Instruct: find contracts\nQuery:"
    with asking({"embedder": directory}) as client:
        for params, prompt in (
            ({"is_query": True}, TASK),
            ({"is_query": False}, ""),
            ({"instruction": told}, told),
        ):
            body = {"items": [{"text": text} for text in TEXTS], "params": params}
            answer = post(client, "/v1/encode/embedder", body)
            ours = np.array([item["dense"]["values"] for item in answer["items"]])
            expected = reference.encode(TEXTS, prompt=prompt, show_progress_bar=False)
            np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_bidirectional_attention_as_the_config_says(tmp_path: Path) -> None:
    directory = make_embedder(
        tmp_path, "llama", pooling={"pooling_mode": "mean"}, is_causal=False, attention_bias=True
    )
    expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS, show_progress_bar=False)
    engine = Engine(directory, device=DEVICE, dtype="float32")
    np.testing.assert_allclose(vectors_of(engine, TEXTS), expected, atol=1e-4, rtol=0)


def test_verify_compares_decoder_embedders(tmp_path: Path) -> None:
    report = verify(make_embedder(tmp_path, "qwen3", layout="qwen3-embedding"), 12)
    assert report.equal(1e-4)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}, "never run"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "chat template"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_lasttoken": False, "pooling_mode_attention": True},
            "pooling_mode_attention",
        ),
        ("modules.json", [], "decoder"),
    ],
)
def test_settings_that_would_give_wrong_vectors_are_refused(
    tmp_path: Path, file: str, content: Any, complaint: str
) -> None:
    directory = make_embedder(tmp_path, "qwen3", layout="qwen3-embedding")
    before = json.loads((directory / file).read_text(encoding="utf-8"))
    write_json(directory / file, content if isinstance(content, list) else before | content)
    with pytest.raises(ModelLoadFailed, match=complaint):
        Engine(directory, device=DEVICE, dtype="float32")


def test_rotary_frequencies_in_old_files_have_no_effect(tmp_path: Path) -> None:
    directory = make_embedder(tmp_path, "llama", layout="causal")
    path = directory / "model.safetensors"
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    save_file(load_file(path) | old, path, {"format": "pt"})
    assert Engine(directory, device=DEVICE, dtype="float32").spec.outputs == ["dense"]


def test_a_template_file_makes_the_checkpoint_a_reranker(tmp_path: Path) -> None:
    directory = make_embedder(tmp_path, "qwen3", layout="causal")
    (directory / "sie_reranker.yaml").write_text("template: qwen3-reranker", encoding="utf-8")
    assert Engine(directory, device=DEVICE, dtype="float32").spec.outputs == ["score"]


def test_an_end_token_that_only_the_settings_name_is_refused(tmp_path: Path) -> None:
    directory = make_embedder(tmp_path, "qwen3")
    make_decoder(tmp_path / "plain", "qwen3")
    (directory / "tokenizer.json").write_bytes((tmp_path / "plain" / "tokenizer.json").read_bytes())
    write_json(directory / "tokenizer_config.json", {"add_eos_token": True, "eos_token": "<|endoftext|>"})
    with pytest.raises(ModelLoadFailed, match="add_eos_token"):
        Engine(directory, device=DEVICE, dtype="float32")
