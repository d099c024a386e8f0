"""A vocabulary without tokenizer.json, as checkpoints from before fast tokenizers have it.

`vocab.txt` has one token a line. `vocab.json` maps tokens to ids, and `merges.txt` has one merge a line after a comment
about its version. The rules for lines are those of `WordPiece.read_file` and `BPE.read_file` of the library tokenizers.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models

from sie_server.engine.text.loading.classes import TokenizerClass
from sie_server.engine.text.loading.files import TokenizerFiles
from sie_server.files import TOKENIZER_BYTES, read_text
from sie_server.models.spec import UnsupportedCheckpoint, read_json


def has_vocabulary(files: TokenizerFiles, kind: TokenizerClass) -> bool:
    """Return whether the directory has every file of the class's vocabulary."""
    return bool(kind.vocabulary) and all(files.has(name) for name in kind.vocabulary)


def read_vocabulary(files: TokenizerFiles, kind: TokenizerClass, parameters: dict[str, Any]) -> Tokenizer:
    """Return a tokenizer of the vocabulary alone.

    Raises:
        UnsupportedCheckpoint: a file is unreadable, or its lines are no vocabulary.
    """
    names = " and ".join(kind.vocabulary)
    try:
        if kind.model == "WordPiece":
            return Tokenizer(models.WordPiece(_words(files, kind.vocabulary[0]), **parameters))
        words, merges = kind.vocabulary
        given = {name: value for name, value in parameters.items() if value is not None}
        return Tokenizer(models.BPE(read_json(files.directory / words), _merges(files, merges), **given))
    except UnsupportedCheckpoint:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise UnsupportedCheckpoint(f"{names} in {files.directory} cannot be read: {error}") from error


def _lines(files: TokenizerFiles, name: str) -> list[str]:
    text = read_text(files.directory / name, TOKENIZER_BYTES)
    return text.removesuffix("\n").split("\n") if text else []


def _words(files: TokenizerFiles, name: str) -> dict[str, int]:
    return {line.rstrip(): number for number, line in enumerate(_lines(files, name))}


def _merges(files: TokenizerFiles, name: str) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_lines(files, name), 1):
        parts = line.removesuffix("\r").split(" ")
        if line.startswith("#version"):
            continue
        if len(parts) != 2:
            raise ValueError(f"{name} line {number} has {len(parts)} parts; expected 2")
        merges.append((parts[0], parts[1]))
    return merges
