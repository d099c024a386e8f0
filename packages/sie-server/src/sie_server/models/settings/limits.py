"""How many tokens of a text or a pair are read, by a checkpoint's files."""

from __future__ import annotations

from pathlib import Path

from sie_server.models.settings.numbers import whole_number
from sie_server.models.settings.sentence import sentence_file, sentence_settings
from sie_server.models.spec import BackboneSpec, read_json


def tokenizer_limit(directory: Path, backbone: BackboneSpec) -> int:
    """Return the limit in tokens per pair: the tokenizer's if it has one, but no more than the positions."""
    path = directory / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    named = settings.get("model_max_length", settings.get("max_len"))
    # transformers writes int(1e30) for "no limit"
    if isinstance(named, int | float) and not isinstance(named, bool) and 1 <= named < 1e9:
        return min(int(named), backbone.max_length)
    return backbone.max_length


def sentence_limit(directory: Path, backbone: BackboneSpec) -> int:
    """Return the limit of sentence-transformers: that of its module Transformer, else the tokenizer's."""
    # from version 6 on the limit is only in the tokenizer's configuration
    limit = whole_number(sentence_settings(directory), "max_seq_length", sentence_file(directory))
    return min(limit or tokenizer_limit(directory, backbone), backbone.max_length)
