"""Rerankers saved by sentence-transformers: `1_LogitScore` and the chat template override the catalog."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from sie_server.engine.engine import Engine
from sie_server.engine.job import ScoreTexts
from sie_server.errors import ModelLoadFailed
from sie_server.serving.activation import activate
from support.checkpoints.cross_encoders import random_text
from support.checkpoints.decoders import byte_level_tokenizer, make_decoder
from support.device import DEVICE
from support.requests.jobs import run_job

FLAT = """<|im_start|>system
Judge whether the Document meets the requirements.<|im_end|>
{# a comment #}
<|im_start|>user
{% set told = messages | selectattr("role", "eq", "system") | map(attribute="content") | first %}
<Instruct>: {{ told | default("Search", true) }}
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
{% if add_generation_prompt is not defined or not add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
STRUCTURED = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content[0].text }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
LIMIT = 300
QUERY = "how do stars burn hydrogen?"


def documents() -> list[str]:
    rng = random.Random(4)
    return [random_text(rng, n) for n in (0, 1, 2, 7, 20, 50, 70, 90, 200, 500)]


@pytest.fixture(scope="module", params=["flat", "structured", "one answer"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a repository with `CrossEncoder.save_pretrained`."""
    directory = make_decoder(tmp_path_factory.mktemp("plain"), "qwen3")
    template = STRUCTURED if request.param == "structured" else FLAT
    transformer = Transformer(
        str(directory), transformer_task="text-generation", processor_kwargs={"chat_template": template}
    )
    plain = byte_level_tokenizer()
    no = None if request.param == "one answer" else plain.token_to_id("0")
    score = LogitScore(plain.token_to_id("1"), no)
    model = CrossEncoder(
        modules=[transformer, score],
        device="cpu",
        prompts={"web": "Find passages"},
        default_prompt_name=None if request.param == "structured" else "web",
        activation_fn=torch.nn.Identity() if request.param == "one answer" else None,
    )
    out = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    model.save_pretrained(str(out))
    settings = json.loads((out / "sentence_bert_config.json").read_text())
    wanted = "structured" if request.param == "structured" else "flat"
    assert settings["modality_config"]["message"]["format"] == wanted
    return out


@pytest.mark.parametrize("instruction", [None, "prefer short passages"])
def test_scores_equal_sentence_transformers(saved: Path, instruction: str | None) -> None:
    model = CrossEncoder(str(saved), device="cpu", model_kwargs={"dtype": torch.float32})
    model.max_seq_length = LIMIT
    pairs = [(QUERY, document) for document in documents()]
    prompt = {"prompt": instruction} if instruction else {}
    expected = model.predict(pairs, batch_size=3, show_progress_bar=False, **prompt)
    # the catalog's template differs and is not used
    engine = Engine(saved, device=DEVICE, dtype="float32", template="qwen3-reranker")
    job = engine.tokenize_score(ScoreTexts(QUERY, documents(), LIMIT, instruction))
    run_job(engine, job)
    assert any(job.truncated) and expected.std() > 0.02
    activation = engine.spec.head.activation  # type: ignore[union-attr]
    ours = [activate(x, activation) for x in job.results]
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=0)
    print("max |Δ|", np.abs(np.array(ours) - expected).max())


def test_the_operators_template_file_takes_precedence(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    (directory / "sie_reranker.yaml").write_text("template: zerank")
    engine = Engine(directory, device=DEVICE, dtype="float32")
    assert engine.spec.head.template.name == "zerank"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages if m.role == 'query' %}{{ m.content }}{% endfor %}",
            "must put the document",
        ),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", "unchanged"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ '{query}' }}", "literal text {query}"),
        ("{{ raise_exception('only users') }}", "only users"),
        ("{% if %}", "is not a valid template"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot render|does not put"),
    ],
)
def test_a_chat_template_that_does_not_show_both_texts_is_refused(
    saved: Path, tmp_path: Path, template: str, message: str
) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    settings = json.loads((directory / "sentence_bert_config.json").read_text())
    settings["modality_config"]["message"]["format"] = "flat"
    (directory / "sentence_bert_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelLoadFailed, match=message):
        Engine(directory, device=DEVICE, dtype="float32", template="qwen3-reranker")
