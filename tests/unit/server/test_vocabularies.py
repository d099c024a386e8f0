"""Checkpoints without tokenizer.json get the ids of `transformers.AutoTokenizer`, or a refusal with the way out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from transformers.models.auto import tokenization_auto
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from sie_server.engine.storage.hub import FILES, VOCABULARIES, _patterns
from sie_server.engine.text.loading import conversion
from sie_server.engine.text.loading.classes import REBUILT
from sie_server.engine.text.loading.files import TokenizerFiles
from sie_server.engine.text.loading.load import load_tokenizer
from sie_server.engine.text.loading.names import GENERIC, MODEL_TYPES, REGISTERED, THROUGH_TRANSFORMERS, TYPED
from sie_server.models.spec import UnsupportedCheckpoint
from support.checkpoints.cross_encoders import WORDS, bert_tokenizer, random_text, roberta_tokenizer
from unit.server.test_tokenizer_settings import ids_of_both


def _pieces(kind: str, **options: Any) -> bytes:
    """Return a sentencepiece model trained on a few sentences."""
    import random

    model, rng = io.BytesIO(), random.Random(5)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(random_text(rng, 30) for _ in range(200)),
        model_writer=model,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 150} | options,
    )
    return model.getvalue()


def _words(*renamed: tuple[str, str]) -> dict[str, bytes]:
    vocabulary = bert_tokenizer().get_vocab()
    text = "\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])) + "\n"
    for old, new in renamed:
        text = text.replace(old, new)
    return {"vocab.txt": text.encode()}


def _merges() -> dict[str, bytes]:
    model = json.loads(roberta_tokenizer().to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode(),
    }


MPNET = (("[PAD]", "<pad>"), ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>"))
ADDED = {
    "added_tokens.json": json.dumps({"[EXTRA]": 400, "falls": 401}).encode(),
    "special_tokens_map.json": json.dumps(
        {"cls_token": "[CLS]", "additional_special_tokens": ["[EXTRA]"]}
    ).encode(),
}
DEBERTA: dict[str, Any] = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": 2,
    "eos_id": 3,
    "pad_piece": "[PAD]",
    "unk_piece": "[UNK]",
    "bos_piece": "[CLS]",
    "eos_piece": "[SEP]",
    "user_defined_symbols": ["[MASK]"],
}
BYTES: dict[str, Any] = {"byte_fallback": True, "vocab_size": 400}
# name → the vocabulary, the model type, tokenizer_config.json
CASES: dict[str, tuple[Any, str, dict[str, Any] | None]] = {
    "bert": (_words, "bert", None),
    "bert cased": (_words, "bert", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}),
    "bert with \\r": (lambda: _words(("\n", "\r\n")), "distilbert", {"strip_accents": False}),
    "bert with added tokens": (lambda: _words() | ADDED, "electra", None),
    "mpnet": (lambda: _words(*MPNET), "mpnet", {}),
    "roberta": (_merges, "roberta", None),
    "roberta with a space": (_merges, "longformer", {"add_prefix_space": True}),
    "gpt2": (_merges, "gpt2", {"add_bos_token": True, "bos_token": "<s>"}),
    "qwen2": (_merges, "qwen2", {}),
    "xlm-roberta": (lambda: {"sentencepiece.bpe.model": _pieces("unigram")}, "xlm-roberta", None),
    "camembert": (lambda: {"sentencepiece.bpe.model": _pieces("unigram")}, "camembert", {}),
    "deberta-v2": (
        lambda: {"spm.model": _pieces("unigram", **DEBERTA)},
        "deberta-v2",
        {"do_lower_case": True},
    ),
    "llama": (
        lambda: {"tokenizer.model": _pieces("bpe", **BYTES)},
        "llama",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True},
    ),
    "gemma": (lambda: {"tokenizer.model": _pieces("bpe", **BYTES)}, "gemma", {}),
}


def _write(directory: Path, name: str) -> Path:
    vocabulary, model_type, settings = CASES[name]
    for file, content in vocabulary().items():
        (directory / file).write_bytes(content)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("name", CASES)
def test_a_vocabulary_leads_to_the_ids_of_the_library(name: str, tmp_path: Path) -> None:
    ours, theirs = ids_of_both(_write(tmp_path, name))
    assert isinstance(ours, list) and ours == theirs


def test_without_the_extra_the_refusal_names_the_files_and_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "NEEDED", ("transformers", "not_installed_here.at_all"))
    load_tokenizer(TokenizerFiles(_write(tmp_path, "roberta")))  # needs no library
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"has merges\.txt.*\[compat\].*save_pretrained"):
        load_tokenizer(TokenizerFiles(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("bert", "vocab.txt", b"\xff\xfe", "vocab.txt in .* cannot be read"),
        ("roberta", "merges.txt", b"#version: 0.2\na b c\n", "line 2 has 3 parts"),
        ("roberta", "merges.txt", b"x y\nnot here\n", "cannot be read"),
        ("roberta", "vocab.json", b"[]", "vocab.json holds a list"),
        ("xlm-roberta", "sentencepiece.bpe.model", b"no model", "transformers cannot build the tokenizer"),
    ],
)
def test_a_broken_vocabulary_is_refused_by_name(
    name: str, file: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (_write(tmp_path, name) / file).write_bytes(content)
    with pytest.raises(UnsupportedCheckpoint, match=message):
        load_tokenizer(TokenizerFiles(tmp_path))


def test_without_any_vocabulary_nothing_is_invented(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedCheckpoint, match="no other vocabulary"):
        load_tokenizer(TokenizerFiles(tmp_path))


def test_a_tokenizer_in_python_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}'
    )
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    with pytest.raises(UnsupportedCheckpoint, match=r"BertJapanese|written in Python|cannot build"):
        load_tokenizer(TokenizerFiles(tmp_path))


def test_the_hub_serves_the_vocabulary_only_where_it_is_needed() -> None:
    assert _patterns(["model.safetensors", "tokenizer.json", "vocab.txt"]) == FILES
    assert _patterns(["model.safetensors", "vocab.txt"]) == [*FILES, *VOCABULARIES]
    assert "pytorch_model.bin" in _patterns(["pytorch_model.bin", "vocab.txt"])


def test_the_table_of_classes_is_that_of_the_library() -> None:
    """Every model type that has a classifier, and every class that does not read tokenizer.json as it is."""
    for kind in {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, *REGISTERED}:
        name = tokenization_auto.TOKENIZER_MAPPING_NAMES.get(kind)
        found = name and tokenization_auto.tokenizer_class_from_name(name)
        if found is None or not hasattr(found, "convert_to_native_format") or kind not in REGISTERED:
            assert kind not in REGISTERED or name, kind
            continue
        real = "TokenizersBackend" if name == "MistralCommonBackend" else found.__name__
        assert REGISTERED[kind] == real, kind
    assert set(MODEL_TYPES) <= {*REBUILT, *THROUGH_TRANSFORMERS, "TokenizersBackend"}
    for name in {*REBUILT, *THROUGH_TRANSFORMERS, *GENERIC}:
        inputs = getattr(transformers, name).model_input_names
        assert ("token_type_ids" in inputs) == (name in TYPED), name
