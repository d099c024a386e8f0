"""Decoders saved as classifiers give the raw logits of sentence-transformers or transformers for the same prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.verify.verify import verify
from support.checkpoints.decoders import DECODERS, byte_level_tokenizer, make_decoder
from support.device import DEVICE
from support.requests.jobs import run_job

QUERY = "how do stars burn?"
TEXTS = ["stars burn hydrogen", "", "rain falls over the quiet harbour", "データ 2.5", "no <|im_end|> yes"]
CONVERSATION = (
    "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.content }}{% endfor %}"
)
FLAT = """{% for m in messages %}{% if m.role == 'system' %}<Task> {{ m.content }}
{% endif %}{% endfor %}<Q>{{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}</Q>
<D>{{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}</D><|im_start|>"""
LISTS = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content[0].text }}<|im_end|>
{% endfor %}"""
PADDED = (
    LISTS + "yes<|endoftext|><|endoftext|>"
)  # ends with the padding token, which the classifier does not read
NAMED = [{"name": "tool_use", "template": CONVERSATION}, {"name": "default", "template": FLAT}]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = make_decoder(tmp_path / "checkpoint", "qwen3", labels=1)
    edit(directory / "config.json", pad_token_id=byte_level_tokenizer().token_to_id("<|endoftext|>"))
    return directory


def engine(directory: Path, template: str | None = None) -> Engine:
    return Engine(directory, device=DEVICE, dtype="float32", template=template)


def logits(loaded: Engine, instruction: str | None = None) -> list[float]:
    return run_job(loaded, loaded.tokenize_score(ScoreTexts(QUERY, TEXTS, 300, instruction)))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


@pytest.mark.parametrize("family", sorted(set(DECODERS) - {"zerank"}))
def test_every_decoder_equals_transformers_with_a_named_template(tmp_path: Path, family: str) -> None:
    directory = make_decoder(tmp_path / "checkpoint", family, labels=1)
    report = verify(directory, 6, DECODERS[family][3])
    assert "transformers" in report.reference and report.pairs > 3
    assert report.equal(1e-3), report


def test_a_decoder_that_only_transformers_has_reads_its_template(tmp_path: Path) -> None:
    make_decoder(tmp_path, "llama", labels=1)
    tokens = byte_level_tokenizer("<|begin_of_text|>").get_vocab_size()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Phi3Config(vocab_size=tokens, pad_token_id=0, num_labels=1, **shape)
    torch.manual_seed(1)
    transformers.Phi3ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadFailed, match="without a prompt template"):
        engine(tmp_path)
    (tmp_path / "sie_reranker.yaml").write_text("template: mxbai-rerank-v2\n")
    assert engine(tmp_path).spec.compat
    assert verify(tmp_path, 6).equal(1e-4)


def test_several_chat_templates_are_refused(checkpoint: Path) -> None:
    edit(checkpoint / "tokenizer_config.json", chat_template=NAMED)
    with pytest.raises(ModelLoadFailed, match="several chat templates; keep the one"):
        engine(checkpoint)


@pytest.mark.parametrize(
    ("template", "place"),
    [
        (FLAT, "chat_template.jinja"),
        (LISTS, "tokenizer_config.json"),
        (PADDED, "chat_template.jinja"),
    ],
    ids=["flat", "lists", "padded"],
)
def test_a_chat_template_is_rendered_as_sentence_transformers_does(
    checkpoint: Path, template: str, place: str
) -> None:
    if place.endswith(".json"):
        edit(checkpoint / place, chat_template=template)
    else:
        (checkpoint / place).write_text(template)
    model = CrossEncoder(str(checkpoint), device="cpu", activation_fn=torch.nn.Identity())
    pairs = [(QUERY, text) for text in TEXTS]
    for instruction in (None, "prefer short passages"):
        prompt = {"prompt": instruction} if instruction else {}
        expected = model.predict(pairs, show_progress_bar=False, **prompt)
        # the catalog's template differs and is not used
        ours = logits(engine(checkpoint, "qwen3-reranker"), instruction)
        plain = logits(engine(checkpoint))
        assert (ours == plain) == (instruction is None)
        # the name of a control token in a text stays text here, and becomes the token in the library
        np.testing.assert_allclose(ours[:4], expected[:4], atol=1e-4, rtol=0)
    report = verify(checkpoint, 6)
    assert report.reference.startswith("sentence-transformers") and report.equal(1e-4)


def test_a_conversion_scores_like_the_causal_checkpoint(tmp_path: Path) -> None:
    """The rows of both answers become one row, as in the published conversions of Qwen3-Reranker."""
    causal = make_decoder(tmp_path / "causal", "qwen3", tie_word_embeddings=False)
    converted = make_decoder(tmp_path / "converted", "qwen3", labels=1)
    weights = load_file(causal / "model.safetensors")
    rows, tokens = weights.pop("lm_head.weight"), byte_level_tokenizer()
    yes, no = (tokens.token_to_id(token) for token in ("yes", "no"))
    save_file(
        weights | {"score.weight": (rows[yes] - rows[no])[None].clone()}, converted / "model.safetensors"
    )
    for instruction in (None, "prefer short passages"):
        expected = logits(engine(causal, "qwen3-reranker"), instruction)
        ours = engine(converted, "qwen3-reranker")
        assert ours.spec.takes_instruction
        np.testing.assert_allclose(logits(ours, instruction), expected, atol=1e-4, rtol=0)
    shutil.copy(causal / "tokenizer_config.json", converted)
    edit(converted / "tokenizer_config.json", chat_template=CONVERSATION)  # as the original has
    np.testing.assert_allclose(logits(engine(converted, "qwen3-reranker"), instruction), expected, atol=1e-4)
    with pytest.raises(ModelLoadFailed, match="must put the query into the prompt"):
        engine(converted)


def test_without_a_template_only_the_operator_may_serve_it(checkpoint: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"without a prompt template.*qwen3-reranker.*`template: none`"):
        engine(checkpoint)
    (checkpoint / "sie_reranker.yaml").write_text("template: none\n")
    loaded = engine(checkpoint)
    assert loaded.spec.warning and "without a prompt" in loaded.spec.warning
    assert not loaded.spec.takes_instruction
    expected = CrossEncoder(str(checkpoint), device="cpu", activation_fn=torch.nn.Identity()).predict(
        [(QUERY, text) for text in TEXTS], batch_size=1, show_progress_bar=False
    )
    np.testing.assert_allclose(logits(loaded)[:4], expected[:4], atol=1e-4, rtol=0)


def test_none_needs_a_classifier(tmp_path: Path) -> None:
    directory = make_decoder(tmp_path / "causal", "qwen3")
    (directory / "sie_reranker.yaml").write_text("template: none\n")
    with pytest.raises(ModelLoadFailed, match="needs a checkpoint with a classifier"):
        engine(directory)


def test_a_file_with_its_own_answers_is_refused(checkpoint: Path) -> None:
    (checkpoint / "sie_reranker.yaml").write_text('pieces: ["{query} {document}"]\npositive: "yes"\n')
    with pytest.raises(ModelLoadFailed, match="remove `positive`"):
        engine(checkpoint)


@pytest.mark.parametrize("rendered", [True, False], ids=["chat template", "named template"])
def test_the_operator_chooses_one_of_several_labels(tmp_path: Path, rendered: bool) -> None:
    """A conversion may keep both answers as labels; the log-odds of one are the difference of their logits."""
    directory = make_decoder(tmp_path / "two", "qwen2", labels=2, id2label={0: "no", 1: "yes"})
    if rendered:
        (directory / "chat_template.jinja").write_text(LISTS)
    else:
        (directory / "sie_reranker.yaml").write_text("template: mxbai-rerank-v2\n")
    with pytest.raises(ModelLoadFailed, match=r"2 labels \(0: no, 1: yes\).*label: yes"):
        engine(directory)
    named = "" if rendered else "template: mxbai-rerank-v2\n"
    scores = []
    for label in ("yes", "no"):
        if rendered:
            loaded = Engine(directory, device=DEVICE, dtype="float32", label=label)  # as a catalog file does
        else:
            (directory / "sie_reranker.yaml").write_text(f'{named}label: "{label}"\n')
            loaded = engine(directory)
            assert verify(directory, 5).equal(1e-3)
        scores.append(np.array(logits(loaded)))
    np.testing.assert_allclose(scores[0], -scores[1], atol=1e-5)
    if rendered:
        model = CrossEncoder(str(directory), device="cpu", activation_fn=torch.nn.Identity())
        both = model.predict([(QUERY, text) for text in TEXTS], batch_size=1, show_progress_bar=False)
        np.testing.assert_allclose(scores[0][:4], (both[:, 1] - both[:, 0])[:4], atol=1e-4)
