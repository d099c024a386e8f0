"""Prompted rerankers beyond the plain causal ones: NVIDIA's bidirectional Llama, and vision-language models for text.

The references are transformers' own classes with the heads put on by hand, as each repository's code does it. For the
vision-language ones that is the whole multimodal model, so that its three-coordinate positions prove ours.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from checkpoints import random_text
from decoder_checkpoints import byte_level_tokenizer, end_with, roughen_decoder
from encoders import write_json
from inprocess import ask, asking, in_order, post
from sie_server.engine.engine import Engine
from sie_server.engine.verify import CannotVerify, verify
from sie_server.errors import ModelLoadFailed

LIMIT = 220
QUERY = "how do stars burn hydrogen?"
DOCUMENTS = [
    random_text(random.Random(i), n) for i, n in enumerate((1, 2, 7, 15, 16, 17, 40, 64, 90, 600))
] + [
    "",
    "  two  spaces \n",
    "日本 ü?",
]
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
VISION = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: {}<Query>:{}\n'
    "<Document>:{}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass
class Made:
    """A checkpoint on disk and the reference over it."""

    directory: Path
    template: str
    ids: Callable[[str, str], list[int]]  # query, document → what the reference reads, whole
    logit: Callable[[list[int]], float]


def save_tokenizer(directory: Path, bos: str | None = None) -> transformers.PreTrainedTokenizerFast:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(bos), bos_token=bos, pad_token="<|endoftext|>"
    )
    fast.save_pretrained(directory)
    return fast


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | fields)


def make_nemotron(directory: Path) -> Made:
    """llama-nemotron-rerank: Llama 3.2 with `score`, read as transformers reads it with `is_causal` off."""
    tokenizer = save_tokenizer(directory, "<|begin_of_text|>")
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = transformers.LlamaConfig(
        **TEXT, vocab_size=len(tokenizer) + 8, num_labels=1, rope_parameters=rope, tie_word_embeddings=True
    )
    torch.manual_seed(1)
    model = transformers.LlamaForSequenceClassification(config).eval()
    roughen_decoder(model)
    model.save_pretrained(directory)
    own = {"AutoConfig": "llama_bidirectional_model.LlamaBidirectionalConfig"}
    name = "LlamaBidirectionalForSequenceClassification"
    edit_config(
        directory,
        architectures=[name],
        auto_map=own,
        model_type="llama_bidirec",
        pooling="avg",
        temperature=0.5,
    )
    model.config.is_causal = False

    def ids(query: str, document: str) -> list[int]:
        return list(tokenizer(f"question:{query} \n \n passage:{document}")["input_ids"])

    def logit(ids: list[int]) -> float:
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden.mean(1))) / 0.5

    return Made(directory, "nemotron-rerank", ids, logit)


def make_qwen3_vl(directory: Path, *, tied: bool = True) -> Made:
    """Qwen3-VL-Reranker: the whole vision-language model, as saved by transformers."""
    tokenizer = save_tokenizer(directory)
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 5e6}
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 8, "head_dim": 16, "rope_parameters": rope},
        vision_config={**VISION, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 48}
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(2)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval()
    roughen_decoder(model)
    model.save_pretrained(directory)
    instruction = "Given a search query, retrieve relevant candidates that answer the query."
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    def ids(query: str, document: str) -> list[int]:
        return list(tokenizer(JUDGE.format(instruction, query, document))["input_ids"])

    def logit(ids: list[int]) -> float:
        last = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
        return float(last[yes] - last[no])

    return Made(directory, "qwen3-vl-reranker", ids, logit)


def make_jina_m0(directory: Path) -> Made:
    """jina-reranker-m0: Qwen2-VL in the names of its release, `visual.` and `model.`, and an MLP for a head."""
    tokenizer = save_tokenizer(directory)
    rope = {"type": "mrope", "mrope_section": [2, 2, 2]}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 8, "rope_parameters": rope | {"rope_theta": 1e6}},
        vision_config={**VISION, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 1},
    )
    torch.manual_seed(3)
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    size = TEXT["hidden_size"]
    score = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 1))
    roughen_decoder(model)
    roughen_decoder(score)
    model.save_pretrained(directory)
    names = {"model.language_model.": "model.", "model.visual.": "visual."}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
    for new, old in names.items():
        tensors = {old + n.removeprefix(new) if n.startswith(new) else n: t for n, t in tensors.items()}
    tensors |= {f"score.{name}": tensor for name, tensor in score.state_dict().items()}
    save_file(
        {n: t.detach().clone().contiguous() for n, t in tensors.items()}, directory / "model.safetensors"
    )
    flat = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    text = flat.pop("text_config")
    text.pop("rope_parameters")  # the release is older than that field
    write_json(
        directory / "config.json",
        flat | text | {"architectures": ["JinaVLForRanking"], "rope_theta": 1e6, "rope_scaling": rope},
    )

    def ids(query: str, document: str) -> list[int]:
        return [*tokenizer(f"**Document**:\n{document}\n**Query**:\n{query}")["input_ids"], 100]

    def logit(ids: list[int]) -> float:
        asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        hidden = model(**asked, output_hidden_states=True).hidden_states[-1]
        return float(score(hidden[:, -1])) - 2.65

    return Made(directory, "jina-reranker-m0", ids, logit)


MAKERS = {"nemotron": make_nemotron, "qwen3-vl": make_qwen3_vl, "jina-m0": make_jina_m0}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(made: Made) -> Engine:
    return Engine(made.directory, device="cpu", dtype="float32", template=made.template)


def scored(engine: Engine, documents: list[str], query: str = QUERY) -> tuple[list[list[int]], list[float]]:
    """Token ids and raw logits, in the order of `documents`."""
    job = engine.tokenize_score(query, documents, LIMIT)
    before = job.prefix.ids.tolist() if job.prefix else []
    ids: list[list[int]] = [[] for _ in documents]
    for work, result in zip(job.work, engine.run(job.work), strict=True):
        job.put(work.index, result)
        ids[work.index] = before + work.tokens.ids.tolist()
    return ids, job.results


def kept(ours: list[int], whole: list[int]) -> int:
    """Tokens that a cut prompt shares with the whole one, at its start and at its end."""
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
    assert np.std(expected) > 0.05  # logits that are all alike would prove nothing
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def test_alone_equals_batched_equals_permuted(engine: Engine) -> None:
    _, batched = scored(engine, DOCUMENTS)
    alone = [scored(engine, [document])[1][0] for document in DOCUMENTS]
    order = random.Random(3).sample(range(len(DOCUMENTS)), len(DOCUMENTS))
    _, permuted = scored(engine, [DOCUMENTS[i] for i in order])
    np.testing.assert_allclose(batched, alone, atol=1e-3, rtol=0)
    np.testing.assert_allclose(permuted, [batched[i] for i in order], atol=1e-3, rtol=0)


def test_only_causal_models_share_the_start_of_their_prompts(made: Made, engine: Engine) -> None:
    job = engine.tokenize_score(QUERY, [text + " rain" for text in DOCUMENTS[:8]], LIMIT)
    assert (job.prefix is not None) == (made.template == "qwen3-vl-reranker")  # m0 puts the document first


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


def test_verify_says_that_nothing_compares(made: Made) -> None:
    named = made.directory / "sie_reranker.yaml"
    named.write_text(f"template: {made.template}", encoding="utf-8")
    with pytest.raises(CannotVerify, match="template"):
        verify(made.directory, 3)
    named.unlink()


def test_untied_output_matrix(tmp_path: Path) -> None:
    made = make_qwen3_vl(tmp_path, tied=False)
    ids, logits = scored(
        Engine(made.directory, device="cpu", dtype="float32", template=made.template), DOCUMENTS[:6]
    )
    with torch.inference_mode():
        np.testing.assert_allclose(logits, [made.logit(row) for row in ids], atol=1e-3, rtol=0)


def test_the_last_token_of_the_tokenizer_is_kept(tmp_path: Path) -> None:
    """A post-processor that also appends a token: the document is cut in front of it."""
    made = make_nemotron(tmp_path)
    end_with(made.directory, "<|endoftext|>")
    engine = Engine(made.directory, device="cpu", dtype="float32", template=made.template)
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
        Engine(made.directory, device="cpu", dtype="float32", template=made.template)


@pytest.mark.parametrize(
    ("kind", "template", "complaint"),
    [
        ("nemotron", "qwen3-reranker", "classifier of its own"),
        ("qwen3-vl", "nemotron-rerank", "no `positive`"),
    ],
)
def test_a_template_for_another_head_is_refused(
    tmp_path: Path, kind: str, template: str, complaint: str
) -> None:
    made = MAKERS[kind](tmp_path)
    with pytest.raises(ModelLoadFailed, match=complaint):
        Engine(made.directory, device="cpu", dtype="float32", template=template)


def test_other_towers_are_not_ignored(tmp_path: Path) -> None:
    made = make_qwen3_vl(tmp_path)
    path = made.directory / "model.safetensors"
    save_file({**load_file(path), "model.audio.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelLoadFailed, match="audio"):
        Engine(made.directory, device="cpu", dtype="float32", template=made.template)
