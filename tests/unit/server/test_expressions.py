"""Which tokenizers may be used on the event loop: those whose regular expressions cannot take long."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from sie_server.catalog import EMBEDDED
from sie_server.engine.text.expressions import is_brisk
from sie_server.engine.text.loading.classes import QWEN2_SPLIT
from sie_server.engine.text.tokenizer import TextTokenizer
from support.checkpoints.cross_encoders import make_cross_encoder
from support.servers.inprocess import ask, asking

GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def split_by(expression: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(expression), "isolated")]
    )
    return tokenizer


@pytest.mark.parametrize("expression", [QWEN2_SPLIT, GPT_4O, LLAMA_3, r"[[:alpha:])]+", r"\)+\(*", "a"])
def test_published_expressions_are_brisk(expression: str) -> None:
    assert is_brisk(split_by(expression))


@pytest.mark.parametrize(
    "expression",
    [
        r"(a+)+b",
        r"(?:a|aa)*$",
        r"((a)+){2}",
        r"(?:(?:a){3,})",
        r"a*a*a*b",
        r"\p{L}*x*(?:y|z+)w",
        r"(?=a)(b)*",
    ],
)
def test_expressions_that_may_take_long_are_not(expression: str) -> None:
    assert not is_brisk(split_by(expression))
    tokenizer = split_by("a")
    tokenizer.normalizer = normalizers.Replace(Regex(expression), " ")
    assert not is_brisk(tokenizer)


def test_tokenizers_without_expressions_are_brisk() -> None:
    assert TextTokenizer(EMBEDDED / "mini-en", token_types=True).brisk


@pytest.mark.parametrize(("expression", "here"), [(r"(a+)+b", False), (r"a+b", True)])
def test_only_a_brisk_tokenizer_blocks_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str, here: bool
) -> None:
    file = make_cross_encoder(tmp_path / "bert", "bert") / "tokenizer.json"
    content = json.loads(file.read_text())
    own = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"], own]}
    file.write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}  # it uses the file as it is
    (file.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    threads: list[str] = []
    encode = TextTokenizer._encode

    def noted(tokenizer: TextTokenizer, texts: Sequence[str], *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(tokenizer, texts, *args)

    with asking({"bert": tmp_path / "bert"}) as client:
        ask(client, "bert", "rain", ["rain falls"])
        monkeypatch.setattr(TextTokenizer, "_encode", noted)
        ask(client, "bert", "rain", ["aaac"])
    assert threads and all(name.startswith("sie-tokenize") is not here for name in threads)
