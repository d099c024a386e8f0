"""`verify` agrees with the library that a checkpoint's users run around every limit, and finds other rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from sie_server.catalog import EMBEDDED
from sie_server.cli.commands import NO_REFERENCE, cli
from sie_server.engine.engine import Engine
from sie_server.verify.cross_encoders import cross_encoder, flag_embedding
from sie_server.verify.lengths import lower_limit
from sie_server.verify.verify import Report, compare, verify
from support.checkpoints.cross_encoders import make_cross_encoder
from support.checkpoints.decoders import byte_level_tokenizer, make_decoder
from support.families.every import EVERY

# one checkpoint per way to tokenise and to cut; the others are slow
FEW = (
    "xlm-roberta",
    "decoder qwen2",
    "decoder qwen3",
    "decoder gemma",
    "ColBERT, PyLate",
    "ettin",
    "embedder",
    "SPLADE",
)
FAMILIES = [
    pytest.param(name, marks=() if name in FEW else pytest.mark.slow, id=name) for name in sorted(EVERY)
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Run on one thread: the sequences are short."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compared(engine: Engine, ask_of: Callable[[Engine], Any]) -> Report:
    with torch.inference_mode():
        return compare(engine, ask_of(engine), 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_agrees_around_every_limit(name: str, tmp_path: Path) -> None:
    family, made = EVERY[name], EVERY[name].make(tmp_path)
    engine = Engine(made.served, device="cpu", dtype="float32", template=made.template, share_prefix=False)
    if made.reference is None:
        lower_limit(engine)
    report = compared(engine, made.ask)
    print(
        f"{name} | {report.reference} | {report.limit} | {report.queries} | {report.documents} | "
        f"{report.max_difference:.1e}"
    )
    assert report.first_token_difference is None
    assert report.max_difference <= family.tolerance
    assert len(report.documents) >= 4


CHAT = """<|im_start|>system
Judge whether the document meets the requirements.<|im_end|>
<|im_start|>user
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
<|im_start|>assistant
"""


@pytest.mark.parametrize("labels", [0, 1], ids=["LogitScore", "classifier"])
def test_a_chat_template_is_cut_as_sentence_transformers_cuts_it(labels: int, tmp_path: Path) -> None:
    directory = (
        make_decoder(tmp_path / "checkpoint", "qwen3", labels=labels) if labels else _logit_score(tmp_path)
    )
    (directory / "chat_template.jinja").write_text(CHAT)
    report = verify(directory, 8)
    assert report.reference.endswith("(CrossEncoder)") and max(report.queries) > 3 * report.limit // 4 - 60
    assert report.equal(1e-3), report


def _logit_score(directory: Path) -> Path:
    """Save a causal model in the layout of a reranker of sentence-transformers."""
    made, tokens = make_decoder(directory / "made", "qwen3"), byte_level_tokenizer()
    transformer = Transformer(
        str(made), transformer_task="text-generation", processor_kwargs={"chat_template": CHAT}
    )
    score = LogitScore(tokens.token_to_id("1"), tokens.token_to_id("0"))
    CrossEncoder(modules=[transformer, score], device="cpu").save_pretrained(str(directory / "saved"))
    return directory / "saved"


@pytest.mark.parametrize("truncation", ["longest-first", "query-first"])
def test_each_rule_agrees_with_its_library_and_not_with_the_other(truncation: Any, tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "checkpoint", "xlm-roberta", max_length=64)
    engine = Engine(directory, device="cpu", dtype="float32", truncation=truncation)
    first, second = (cross_encoder, flag_embedding)
    if truncation == "query-first":
        first, second = second, first
    assert compared(engine, lambda _: first(directory, engine)).equal(1e-4)
    other = compared(engine, lambda _: second(directory, engine))
    assert other.max_difference > 1e-3 and "query of" in str(other.first_token_difference)


def test_the_reference_and_its_lengths_are_named(tmp_path: Path) -> None:
    directory = make_cross_encoder(tmp_path / "checkpoint", "xlm-roberta", max_length=64)
    done = CliRunner().invoke(
        cli, ["verify", f"BAAI/bge-reranker-base={directory}", "--pairs", "4", "--offline"]
    )
    assert done.exit_code == 0, done.output
    assert "FlagEmbedding's rule with transformers" in done.output
    assert "limit        64 tokens" in done.output and "47, 48, 49" in done.output


def test_no_reference_is_not_a_difference() -> None:
    done = CliRunner().invoke(cli, ["verify", f"mini={EMBEDDED / 'mini-en'}", "--offline"])
    assert done.exit_code == NO_REFERENCE == 3
    assert "mini: there is no reference to compare with: this model's scorer is specific" in done.output
