"""ColBERT checkpoints in their several layouts → markers, lengths and projection.

Stanford's (https://github.com/stanford-futuredata/ColBERT): architecture `HF_ColBERT`, the projection `linear.weight`
among the backbone's weights, settings in `artifact.metadata`. PyLate's (https://github.com/lightonai/pylate): a
sentence-transformers directory of one Transformer and Dense modules, settings in `config_sentence_transformers.json`.
Settings are resolved as in PyLate 1.6: `config_sentence_transformers.json`, else `artifact.metadata`, else defaults.
`multi_vector` reads the layout of sentence-transformers 6, which has its own modules for ColBERT.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.multi_vector import is_multi_vector, read_multi_vector
from sie_server.models.heads.projections import TOKENS, check_chain, read_projection
from sie_server.models.spec import (
    BackboneSpec,
    LateInteractionSpec,
    ProjectionSpec,
    UnsupportedCheckpoint,
    read_json,
)

STANFORD = "HF_ColBERT/"
_EXPECTED = {int: "a whole number of at least 4", str: "a text", bool: "true or false", list: "a list"}
PYLATE_CONFIG, STANFORD_CONFIG = "config_sentence_transformers.json", "artifact.metadata"
STANFORD_DIM = 128  # the default of Stanford's code when `artifact.metadata` has no `dim`


def read_colbert(
    directory: Path, architecture: str, backbone: BackboneSpec, limit: int
) -> tuple[LateInteractionSpec, int] | None:
    """Return the head of a ColBERT checkpoint and its document limit in tokens; None for other checkpoints.

    `limit` is that of the tokenizer, in tokens, for layouts without a limit of their own.

    Raises:
        UnsupportedCheckpoint: a file is unreadable, or has an unsupported setting.
    """
    stanford = architecture.startswith(STANFORD)
    modules = [] if stanford else _modules(directory)
    if is_multi_vector(directory, modules):
        return read_multi_vector(directory, modules, backbone, limit)
    folders = _dense_folders(modules)
    if not stanford and not folders:
        return None
    settings = _Settings(directory, stanford)
    if stanford:
        dim = settings.number("dim", "dim", STANFORD_DIM)
        projections = [ProjectionSpec(folder=None, inputs=backbone.hidden_size, outputs=dim)]
    else:
        projections = [read_projection(directory, folder, TOKENS) for folder in folders]
    _refuse_default_prompt(settings)
    expand = settings.flag("do_query_expansion", None, True)
    query_length = min(settings.number("query_length", "query_maxlen", 32), backbone.max_length)
    spec = LateInteractionSpec(
        projections=tuple(projections),
        dim=check_chain(projections, backbone.hidden_size),
        query_marker=settings.text("query_prefix", "query_token_id", "[unused0]" if stanford else "[Q] "),
        document_marker=settings.text("document_prefix", "doc_token_id", "[unused1]" if stanford else "[D] "),
        query_length=query_length,
        expand_to=query_length if expand else 0,
        attend_to_expansion=expand
        and settings.flag("attend_to_expansion_tokens", "attend_to_mask_tokens", False),
        skip_words=settings.skip_words(),
    )
    return spec, min(settings.number("document_length", "doc_maxlen", 180), backbone.max_length)


class _Settings:
    """The settings from both files, in order of precedence; null counts as absent."""

    def __init__(self, directory: Path, stanford: bool) -> None:
        self.pylate = _read_optional(directory / PYLATE_CONFIG)
        self._stanford = _read_optional(directory / STANFORD_CONFIG) if stanford else {}

    def _find(self, key: str, stanford_key: str | None, kind: type[Any], default: Any) -> Any:
        for file, config, name in (
            (PYLATE_CONFIG, self.pylate, key),
            (STANFORD_CONFIG, self._stanford, stanford_key),
        ):
            value = config.get(name) if name else None
            if value is not None:
                if type(value) is not kind or (kind is int and value < 4):
                    raise UnsupportedCheckpoint(f"{file}: {name} is {value!r}; expected {_EXPECTED[kind]}")
                return value
        return default

    def text(self, key: str, stanford_key: str | None, default: str) -> str:
        return str(self._find(key, stanford_key, str, default))

    def number(self, key: str, stanford_key: str | None, default: int) -> int:
        return int(self._find(key, stanford_key, int, default))

    def flag(self, key: str, stanford_key: str | None, default: bool) -> bool:
        return bool(self._find(key, stanford_key, bool, default))

    def skip_words(self) -> tuple[str, ...]:
        """Return PyLate's list; else punctuation, as in Stanford's code, unless `mask_punctuation` is false."""
        skips = self.flag("", "mask_punctuation", True)
        words = self._find("skiplist_words", None, list, list(string.punctuation) if skips else [])
        return tuple(str(word) for word in words)


def _read_optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _modules(directory: Path) -> list[tuple[str, str]]:
    """Return kind and folder of each entry of modules.json; an empty list without the file."""
    path = directory / "modules.json"
    if not path.exists():
        return []
    try:
        return [
            (str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in read_json(path, list)
        ]
    except (KeyError, TypeError) as error:
        raise UnsupportedCheckpoint(
            f"modules.json has an entry without a valid type and path: {error!r}"
        ) from error


def _dense_folders(modules: list[tuple[str, str]]) -> list[str]:
    """Return the folders of the Dense modules when the modules are exactly Transformer, Dense, …; else none.

    A Dense after a Pooling projects one vector per text, which is another kind of model.
    """
    kinds = [kind for kind, _ in modules]
    if len(kinds) < 2 or kinds[0] != "Transformer" or set(kinds[1:]) != {"Dense"}:
        return []
    return [folder for _, folder in modules[1:]]


def _refuse_default_prompt(settings: _Settings) -> None:
    """Refuse a prompt before every text, which would otherwise be ignored."""
    name = settings.pylate.get("default_prompt_name")
    if name is not None and (settings.pylate.get("prompts") or {}).get(name):
        raise UnsupportedCheckpoint(
            f"{PYLATE_CONFIG}: a default prompt (default_prompt_name {name!r}) is not supported"
        )
