"""Prompted rerankers beyond the plain causal ones: a bidirectional Llama, and vision-language models for text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import end_with
from support.checkpoints.rankers import MAKERS, Made, edit_config, make_nemotron, make_qwen3_vl
from support.device import DEVICE
from support.servers.inprocess import ask, asking, in_order, post

LIMIT = 220
QUERY = "how do stars burn hydrogen?"
DOCUMENTS = [
    random_text(random.Random(i), n) for i, n in enumerate((1, 2, 7, 15, 16, 17, 40, 64, 90, 600))
] + [
    "",
    "  two  spaces \n",
    "日本 ü?",
]


@pytest.fixture(scope="module", params=sorted(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(made: Made) -> Engine:
    return Engine(made.directory, device=DEVICE, dtype="float32", template=made.template)


def scored(engine: Engine, documents: list[str], query: str = QUERY) -> tuple[list[list[int]], list[float]]:
    """Return token ids and raw logits, in the order of `documents`."""
    job = engine.tokenize_score(ScoreTexts(query, documents, LIMIT))
    before = job.prefix.ids.tolist() if job.prefix else []
    ids: list[list[int]] = [[] for _ in documents]
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
        ids[work.index] = before + work.tokens.ids.tolist()
    return ids, job.results


def kept(ours: list[int], whole: list[int]) -> int:
    """Return the number of tokens that a truncated prompt shares with the full one, at its start and end."""
    start = next((i for i, (a, b) in enumerate(zip(ours, whole, strict=False)) if a != b), len(ours))
    own, all_of_it = ours[:start:-1], whole[::-1]
    return start + next((i for i, (a, b) in enumerate(zip(own, all_of_it, strict=False)) if a != b), len(own))


def test_ids_and_logits_equal_the_reference(made: Made, engine: Engine) -> None:
    ids, logits = scored(engine, DOCUMENTS)
    for ours, document in zip(ids, DOCUMENTS, strict=True):
        whole = made.ids(QUERY, document)
        assert len(ours) <= LIMIT
        assert ours == whole or (len(whole) > LIMIT and kept(ours, whole) >= len(ours) - 2)
    with torch.inference_mode():
        expected = [made.logit(row) for row in ids]
    print(made.template, "max |Δ|", np.abs(np.array(logits) - expected).max(), "std", np.std(expected))
    assert np.std(expected) > 0.05  # equal logits would prove nothing
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def test_alone_equals_batched_equals_permuted(engine: Engine) -> None:
    _, batched = scored(engine, DOCUMENTS)
    alone = [scored(engine, [document])[1][0] for document in DOCUMENTS]
    order = random.Random(3).sample(range(len(DOCUMENTS)), len(DOCUMENTS))
    _, permuted = scored(engine, [DOCUMENTS[i] for i in order])
    np.testing.assert_allclose(batched, alone, atol=1e-3, rtol=0)
    np.testing.assert_allclose(permuted, [batched[i] for i in order], atol=1e-3, rtol=0)


def test_only_causal_models_share_the_start_of_their_prompts(made: Made, engine: Engine) -> None:
    job = engine.tokenize_score(ScoreTexts(QUERY, [text + " rain" for text in DOCUMENTS[:8]], LIMIT))
    # m0's prompt starts with the document
    assert (job.prefix is not None) == (made.template == "qwen3-vl-reranker")


def test_scores_and_images_over_the_wire(made: Made) -> None:
    named = made.directory / "sie_reranker.yaml"
    named.write_text(f"template: {made.template}", encoding="utf-8")
    with asking({"m": made.directory}) as client, torch.inference_mode():
        answer = ask(client, "m", QUERY, DOCUMENTS[:5], return_logits=True)
        logits = in_order(answer, "logit")
        np.testing.assert_allclose(logits, [made.logit(made.ids(QUERY, d)) for d in DOCUMENTS[:5]], atol=1e-3)
        if made.template == "nemotron-rerank":
            assert answer["score_type"] == "logit" and in_order(answer) == logits
        else:
            np.testing.assert_allclose(in_order(answer), 1 / (1 + np.exp(-np.array(logits))), atol=1e-6)
        body = {"query": {"text": QUERY}, "items": [{"images": [{"data": "AAAA", "format": "png"}]}]}
        assert "not images" in json.dumps(post(client, "/v1/score/m", body, 400))
    named.unlink()


def test_untied_output_matrix(tmp_path: Path) -> None:
    made = make_qwen3_vl(tmp_path, tied=False)
    ids, logits = scored(
        Engine(made.directory, device=DEVICE, dtype="float32", template=made.template), DOCUMENTS[:6]
    )
    with torch.inference_mode():
        np.testing.assert_allclose(logits, [made.logit(row) for row in ids], atol=1e-3, rtol=0)


def test_a_token_that_the_tokenizer_appends_is_kept(tmp_path: Path) -> None:
    """If a post-processor appends a token, the document is truncated before it."""
    made = make_nemotron(tmp_path)
    end_with(made.directory, "<|endoftext|>")
    engine = Engine(made.directory, device=DEVICE, dtype="float32", template=made.template)
    ids, _ = scored(engine, DOCUMENTS)
    last = transformers.PreTrainedTokenizerFast.from_pretrained(made.directory)("a")["input_ids"][-1]
    assert {row[-1] for row in ids} == {last} and max(map(len, ids)) == LIMIT


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("nemotron", {"pooling": "weighted"}, "pooling 'weighted'"),
        ("nemotron", {"temperature": 0}, "temperature"),
        ("jina-m0", {"text_config": {"vocab_size": 3}}, "lacks"),
    ],
)
def test_fields_that_cannot_be_served(
    tmp_path: Path, kind: str, change: dict[str, Any], complaint: str
) -> None:
    made = MAKERS[kind](tmp_path)
    edit_config(made.directory, **change)
    with pytest.raises(ModelLoadFailed, match=complaint):
        Engine(made.directory, device=DEVICE, dtype="float32", template=made.template)


def test_a_template_for_another_head_is_refused(tmp_path: Path) -> None:
    made = MAKERS["qwen3-vl"](tmp_path)
    with pytest.raises(ModelLoadFailed, match="no `positive`"):
        Engine(made.directory, device=DEVICE, dtype="float32", template="nemotron-rerank")


def test_weights_of_unknown_towers_are_refused(tmp_path: Path) -> None:
    made = make_qwen3_vl(tmp_path)
    path = made.directory / "model.safetensors"
    save_file({**load_file(path), "model.audio.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelLoadFailed, match="audio"):
        Engine(made.directory, device=DEVICE, dtype="float32", template=made.template)
