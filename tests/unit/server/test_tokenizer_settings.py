"""The settings of a vocabulary lead to the ids of `transformers.AutoTokenizer`, in every file that may have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from sie_server.engine.text.loading.files import TokenizerFiles
from sie_server.engine.text.loading.load import load_tokenizer
from sie_server.engine.text.pair_tokenizer import PairTokenizer
from sie_server.models.spec import UnsupportedCheckpoint
from support.checkpoints.cross_encoders import (
    SPECIAL_TOKENS,
    bert_tokenizer,
    modernbert_tokenizer,
    roberta_tokenizer,
    xlm_roberta_tokenizer,
)
from support.checkpoints.decoders import byte_level_tokenizer, gemma_tokenizer

TEXTS = [
    "RAIN falls over Zürich, naïve café 東京 data-driven 3.14",
    "rain",
    "  rain \n\n falls\t over   stars ",
    "[MASK] <mask> [CLS] <s> </s> <|endoftext|> [EXTRA] x[EXTRA]y <unk>",
    "RÉSUMÉ — ﬁne ½ １２３ İstanbul ß ❤",
    "",
]
NONE: dict[str, Any] = {}
# kind → tokenizer, model type, class, the named tokens
KINDS: dict[str, tuple[Callable[[], Tokenizer], str, str | None, dict[str, str]]] = {
    "bert": (bert_tokenizer, "bert", "BertTokenizer", SPECIAL_TOKENS["bert"]),
    "bert without a class": (bert_tokenizer, "bert", None, SPECIAL_TOKENS["bert"]),
    "bert as saved": (bert_tokenizer, "bert", "PreTrainedTokenizerFast", SPECIAL_TOKENS["bert"]),
    "distilbert": (bert_tokenizer, "distilbert", "DistilBertTokenizer", NONE),
    "electra": (bert_tokenizer, "electra", "ElectraTokenizerFast", NONE),
    "mpnet": (bert_tokenizer, "mpnet", "MPNetTokenizer", SPECIAL_TOKENS["bert"]),
    "unknown type": (bert_tokenizer, "nomic_unknown", "BertTokenizerFast", SPECIAL_TOKENS["bert"]),
    "roberta": (roberta_tokenizer, "roberta", "RobertaTokenizer", SPECIAL_TOKENS["roberta"]),
    "roberta as gpt2": (roberta_tokenizer, "roberta", "GPT2TokenizerFast", SPECIAL_TOKENS["roberta"]),
    "xlm-roberta": (xlm_roberta_tokenizer, "xlm-roberta", "XLMRobertaTokenizerFast", NONE),
    "modernbert": (modernbert_tokenizer, "modernbert", "PreTrainedTokenizerFast", SPECIAL_TOKENS["bert"]),
    "modernbert misnamed": (modernbert_tokenizer, "modernbert", "BertTokenizer", SPECIAL_TOKENS["bert"]),
    "qwen3": (byte_level_tokenizer, "qwen3", "Qwen2Tokenizer", NONE),
    "qwen2 misnamed": (byte_level_tokenizer, "qwen2", "LlamaTokenizerFast", NONE),
    "llama on bytes": (byte_level_tokenizer, "llama", "LlamaTokenizer", NONE),
    "llama": (gemma_tokenizer, "llama", "LlamaTokenizer", NONE),
    "mistral": (gemma_tokenizer, "mistral", "LlamaTokenizer", NONE),
    "gemma": (gemma_tokenizer, "gemma", "GemmaTokenizerFast", NONE),
}
ALL_SETTINGS = {"bert", "mpnet", "roberta", "xlm-roberta", "qwen3", "llama", "bert as saved"}
EXTRA = {"content": "[EXTRA]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
# what one file says and the other does not; tokenizer.json may only name vocabularies that the class can read
SETTINGS: list[dict[str, Any]] = [
    {},
    *({"do_lower_case": value} for value in (True, False)),
    *({"strip_accents": value} for value in (True, False, None)),
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    *({"add_prefix_space": value} for value in (True, False)),
    {"trim_offsets": False, "add_prefix_space": True},
    {"legacy": True},
    {"legacy": False, "add_prefix_space": False},
    {"split_special_tokens": True},
    {"add_bos_token": True, "add_eos_token": True},
    {"padding_side": "left", "truncation_side": "left", "model_max_length": 7},
    {"clean_up_tokenization_spaces": True, "use_default_system_prompt": True, "errors": "strict"},
    {"additional_special_tokens": ["[EXTRA]", "falls"]},
    {"extra_special_tokens": {"image_token": "[EXTRA]"}},
    {"video_token": "[EXTRA]"},
    {"cls_token": "rain", "sep_token": "over"},
    {"unk_token": "rain"},
    {"bos_token": "over", "eos_token": "rain", "pad_token": "falls"},
    {"mask_token": {"__type": "AddedToken", **EXTRA, "content": "<mask>"}},
    {
        "added_tokens_decoder": {
            "5": EXTRA | {"special": True},
            "4": EXTRA | {"content": "stars", "special": False},
        }
    },
]
EDITS: list[dict[str, Any]] = [
    {},
    {"normalizer": {"type": "Lowercase"}},
    {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}},
    {"post_processor": None},
    {"added_tokens": []},
    {"model": {"unk_token": "rain", "unk_id": 4, "fuse_unk": True, "max_input_chars_per_word": 3}},
]


def write(directory: Path, kind: str, edit: dict[str, Any], settings: dict[str, Any]) -> Path:
    build, model_type, name, tokens = KINDS[kind]
    file = json.loads(_SAVED.setdefault(build.__name__, build().to_str()))
    model = edit.get("model", {})
    edit = edit | {"model": file["model"] | {key: model[key] for key in model if key in file["model"]}}
    (directory / "tokenizer.json").write_text(json.dumps(file | edit))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    named = {"tokenizer_class": name} if name else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens | named | settings))
    return directory


_SAVED: dict[str, str] = {}


def ids_of_both(directory: Path) -> tuple[Any, Any]:
    """Return the ids and types of both, or the first words of the reference's refusal and our own."""
    try:
        reference: Any = transformers.AutoTokenizer.from_pretrained(directory)
        # in batches, as sentence-transformers does: alone, a pair with an empty text counts as a single text
        theirs: Any = (
            reference(TEXTS)["input_ids"] + reference(["rain FALLS"] * len(TEXTS), TEXTS)["input_ids"]
        )
    except Exception as error:
        theirs = error
    try:
        tokenizer = load_tokenizer(TokenizerFiles(directory))[0]
        calls = [(text,) for text in TEXTS] + [("rain FALLS", text) for text in TEXTS]
        ours: Any = [tokenizer.encode(*call).ids for call in calls]
    except UnsupportedCheckpoint as error:
        ours = error
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_leads_to_the_ids_of_the_library(kind: str, tmp_path: Path) -> None:
    wrong = []
    tried = SETTINGS if kind in ALL_SETTINGS else SETTINGS[::4]
    cases = [(EDITS[0], settings) for settings in tried] + [(edit, SETTINGS[0]) for edit in EDITS[1:]]
    for number, (edit, settings) in enumerate(cases):
        directory = tmp_path / str(number)
        directory.mkdir()
        ours, theirs = ids_of_both(write(directory, kind, edit, settings))
        if ours != theirs and not isinstance(ours, UnsupportedCheckpoint):
            wrong.append((edit, settings, ours, theirs))
        elif isinstance(ours, UnsupportedCheckpoint) and not isinstance(theirs, Exception):
            wrong.append((edit, settings, str(ours), "answered"))
    assert not wrong, f"{len(wrong)} differ; the first: {wrong[0]}"


@pytest.mark.parametrize("names", [None, ["input_ids", "attention_mask"], ["input_ids", "token_type_ids"]])
def test_token_types_need_a_name_among_the_inputs(names: list[str] | None, tmp_path: Path) -> None:
    settings = {} if names is None else {"model_input_names": names}
    directory = write(tmp_path, "bert", {}, settings)
    reference: Any = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = reference(["rain"], ["stars burn"]).get("token_type_ids")
    [tokens], _, _ = PairTokenizer(directory, "longest-first", token_types=True).pairs(
        "rain", ["stars burn"], 50
    )
    expected = theirs[0] if theirs else [0] * len(tokens)
    assert [int(i >= tokens.type_boundary) for i in range(len(tokens))] == expected
