"""The settings of a vocabulary: which files and keys count, in the order in which transformers 5 reads them.

Source: `PreTrainedTokenizerBase._from_pretrained` in transformers/tokenization_utils_base.py, version 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from sie_server.models.spec import UnsupportedCheckpoint, read_json

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADDED = "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of one checkpoint directory; a missing file counts as empty."""

    directory: Path

    def has(self, name: str) -> bool:
        """Return whether the directory has a file of this name."""
        return (self.directory / name).exists()

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file; empty if it is missing."""
        return dict(read_json(self.directory / name)) if self.has(name) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return self.read("config.json")

    @cached_property
    def own(self) -> dict[str, Any]:
        """`tokenizer_config.json` alone."""
        return self.read(SETTINGS)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of all files: without `added_tokens_decoder`, special_tokens_map.json takes precedence."""
        return self.own if "added_tokens_decoder" in self.own else self.own | self.read(SPECIAL)

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Return a setting that is true or false; null is an answer only where the default is null.

        Raises:
            UnsupportedCheckpoint: it is anything else.
        """
        value = self.settings.get(name, default)
        if not isinstance(value, bool) and (value is not None or default is not None):
            raise UnsupportedCheckpoint(f"{SETTINGS}: {name} is {value!r:.80}; expected true or false")
        return value

    def token(self, name: str, default: str | None) -> str | AddedToken | None:
        """Return a named special token, None where it is null or absent without a default.

        Raises:
            UnsupportedCheckpoint: it is neither a text nor a token with a `content`.
        """
        value = self.settings.get(name, default)
        return value if value is None or isinstance(value, str) else added_token(name, value)


def added_token(where: str, value: Any, **differences: bool) -> AddedToken:
    """Return a token that a file describes with its flags.

    Raises:
        UnsupportedCheckpoint: it has no text as `content`, or a flag is not true or false.
    """
    content = value.get("content") if isinstance(value, dict) else None
    flags = {name: value[name] for name in FLAGS if name in value} if isinstance(value, dict) else {}
    if not isinstance(content, str) or not content or not all(isinstance(f, bool) for f in flags.values()):
        raise UnsupportedCheckpoint(
            f"the tokenizer's settings describe the token {where!r:.80} as {value!r:.80}; expected a text, or an "
            f"object with `content` and the flags {', '.join(FLAGS)}"
        )
    return AddedToken(content, **flags | differences)
