"""Catalog entries of cascades: the ones that are refused, and the options of each stage."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sie_server.catalog import CascadeEntry, known_models
from sie_server.config import ConfigError
from sie_server.serving.cascades import options_of
from sie_server.serving.requests.options import ParsedOptions, parse_options
from sie_server.wire import Profile

CHEAP, STRONG = "sie/mini-en", "BAAI/bge-reranker-v2-m3"
GOOD: list[dict[str, Any]] = [{"model": CHEAP, "keep": 30}, {"model": STRONG}]


def write(folder: Path, stages: Any, name: str = "acme/two", **more: Any) -> None:
    (folder / f"{name.replace('/', '--')}.yaml").write_text(
        yaml.safe_dump({"id": name, "stages": stages, **more})
    )


@pytest.mark.parametrize(
    ("stages", "at", "said"),
    [
        ([{"model": "acme/two", "keep": 3}, {"model": STRONG}], "$.stages[0].model", "names itself"),
        ([{"model": "short", "keep": 3}, {"model": STRONG}], "$.stages[0].model", "names itself"),
        ([{"model": CHEAP, "keep": 0}, {"model": STRONG}], "$.stages[0].keep", ">= 1"),
        ([{"model": CHEAP}, {"model": STRONG}], "$.stages[0].keep", "missing"),
        ([{"model": CHEAP, "keep": 3}, {"model": STRONG, "keep": 2}], "$.stages[1].keep", "top_n"),
        (
            [{"model": CHEAP, "keep": 3}, {"model": CHEAP, "keep": 3}, {"model": STRONG}],
            "$.stages[1].keep",
            "smaller",
        ),
        ([{"model": STRONG}], "$.stages", "length >= 2"),
        (
            [*[{"model": CHEAP, "keep": 9 - i} for i in range(4)], {"model": STRONG}],
            "$.stages",
            "length <= 4",
        ),
        ([{"model": CHEAP, "keep": 3, "options": {"top_n": 3}}, {"model": STRONG}], "$.stages[0]", "'top_n'"),
        ([{"model": CHEAP, "keep": 3, "kep": 3}, {"model": STRONG}], "$.stages[0]", "kep"),
        ("", "$.stages", "array"),
    ],
)
def test_a_file_that_contradicts_itself_is_ignored_with_its_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stages: Any, at: str, said: str
) -> None:
    write(tmp_path, stages, aliases=["short"])
    with caplog.at_level(logging.WARNING):
        assert "acme/two" not in known_models((), str(tmp_path))
    assert at in caplog.text and said in caplog.text
    for name in ("acme/two", "short"):  # neither is taken for a hub repository
        with pytest.raises(ConfigError, match=re.escape(at)) as refused:
            known_models((name,), str(tmp_path))
        assert f"--model {name!r}: {tmp_path / 'acme--two.yaml'}: " in str(refused.value)
    assert known_models((f"acme/two={tmp_path}",), str(tmp_path))["acme/two"].source == str(tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("BAAI/bge-reranker-v2-m4", "did you mean 'BAAI/bge-reranker-v2-m3'"),
        ("zzz", "`sie-server models`"),
        (f"{STRONG}:law", "options: {lora: law}"),
        ("BAAI/bge-small-en-v1.5", "no output 'score', only dense"),
        ("acme/other", "is a cascade too"),
    ],
)
def test_a_stage_must_be_a_known_model_that_scores(tmp_path: Path, model: str, said: str) -> None:
    write(tmp_path, GOOD, "acme/other")
    write(tmp_path, [{"model": CHEAP, "keep": 5}, {"model": model}])
    known = known_models((), str(tmp_path))
    problem = known["acme/two"].problem or ""
    assert said in problem and problem.endswith("at `$.stages[1].model`")
    assert known["acme/other"].problem is None
    with pytest.raises(ConfigError, match=r"acme/two.*stages\[1\]"):
        known_models(("acme/two",), str(tmp_path))
    assert known_models(("acme/other",), str(tmp_path))["acme/other"].preload


def test_an_alias_or_a_model_of_the_command_line_may_be_a_stage(tmp_path: Path) -> None:
    alias = "cross-encoder/ms-marco-MiniLM-L-6-v2"
    write(tmp_path, [{"model": alias, "keep": 5}, {"model": "my/own"}])
    assert known_models(("my/own=org/model",), str(tmp_path))["acme/two"].problem is None


def test_a_cascade_has_no_source_and_no_adapters_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    for value in ("acme/two=org/other", "acme/two@main"):
        with pytest.raises(ConfigError, match="cascade"):
            known_models((value,), str(tmp_path))


def options(request: dict[str, Any], place: int, **stage: Any) -> ParsedOptions:
    stages = [{**one, "options": stage} if i == place else one for i, one in enumerate(GOOD)]
    cascade = msgspec.convert(
        {"id": "c", "stages": stages, "profiles": {"fast": {"top_n": 2, "max_seq_length": 64}}}, CascadeEntry
    )
    parsed = parse_options(request, "$", "score", cascade.profiles, instruction=request.pop("as_field", None))
    own = {"default": Profile(max_seq_length=128)} if place else {}
    return options_of(cascade, place, parsed, lambda m, raw: (m, parse_options(raw, "$", "score", own)))[1]


def test_options_about_documents_reach_every_stage_and_others_the_last_one() -> None:
    asked = {
        "long_document": "chunk",
        "aggregate": "mean",
        "max_seq_length": 32,
        "normalize": "none",
        "top_n": 4,
    }
    first, last = (options(dict(asked), place).known for place in (0, 1))
    assert (first.long_document, first.aggregate) == (last.long_document, last.aggregate) == ("chunk", "mean")
    assert (first.max_seq_length, first.normalize, first.top_n) == (None, None, None)
    assert (last.max_seq_length, last.normalize, last.top_n) == (32, "none", 4)


def test_a_request_has_precedence_over_its_stage_and_this_over_the_model() -> None:
    assert options({}, 1).known.max_seq_length == 128
    assert options({}, 1, max_seq_length=99).known.max_seq_length == 99
    assert options({"profile": "fast"}, 1, max_seq_length=99).known.max_seq_length == 64
    assert options({"max_seq_length": 16}, 1, max_seq_length=99).known.max_seq_length == 16
    assert options({"lora": "law"}, 1, lora="own").adapter == "law"
    assert options({"lora": "law"}, 0, lora="own").adapter == "own"


def test_an_instruction_of_a_request_may_be_unused_by_earlier_stages_but_not_by_the_last() -> None:
    first, last = (options({"as_field": "find laws"}, place).instruction for place in (0, 1))
    assert (first.text, first.path) == ("find laws", None)
    assert (last.text, last.path) == ("find laws", "$.instruction")
    assert options({}, 0, instruction="x").instruction.path == "$.stages[0].options.instruction"
