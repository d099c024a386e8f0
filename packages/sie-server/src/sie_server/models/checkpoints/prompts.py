"""The prompts of an embedding model before queries and documents, from `config_sentence_transformers.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sie_server.models.spec import Prompts, UnsupportedCheckpoint, read_json

FILE = "config_sentence_transformers.json"


def read_prompts(directory: Path, known: Mapping[str, str]) -> Prompts:
    """Return the prompts of a checkpoint, or `known` where it has none.

    Raises:
        UnsupportedCheckpoint: the prompts are not texts, or the default is not among them.
    """
    if not (directory / FILE).exists():
        return Prompts(dict(known))
    config = read_json(directory / FILE)
    texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise UnsupportedCheckpoint(f"{FILE}: prompts must be an object of names and texts")
    if default is not None and default not in texts:
        raise UnsupportedCheckpoint(
            f"{FILE}: default_prompt_name {default!r} is not among the prompts {sorted(texts)}"
        )
    found = Prompts(texts, default)
    return found if found.any or not known else Prompts(dict(known))
