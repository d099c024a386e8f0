"""ColBERT checkpoints, in the two layouts they come in: what their own files say of markers, lengths and projection.

Stanford's (https://github.com/stanford-futuredata/ColBERT): architecture `HF_ColBERT`, the projection `linear.weight`
among the backbone's weights, settings in `artifact.metadata`. PyLate's (https://github.com/lightonai/pylate): a
sentence-transformers directory of one Transformer and Dense modules, settings in `config_sentence_transformers.json`.
Settings are resolved as PyLate 1.6 does: `config_sentence_transformers.json`, else `artifact.metadata`, else defaults.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from sie_server.models.spec import (
    BackboneSpec,
    LateInteractionSpec,
    ProjectionSpec,
    UnsupportedCheckpoint,
    read_json,
)

STANFORD = "HF_ColBERT/"
PYLATE_CONFIG, STANFORD_CONFIG = "config_sentence_transformers.json", "artifact.metadata"
STANFORD_DIM = 128  # what Stanford's code takes when `artifact.metadata` names no `dim`


def read_colbert(
    directory: Path, architecture: str, backbone: BackboneSpec
) -> tuple[LateInteractionSpec, int] | None:
    """The head of a ColBERT checkpoint and its document limit in tokens; None when the directory is no ColBERT.

    Raises:
        UnsupportedCheckpoint: a file is unreadable, or asks for something we do not serve.
    """
    stanford = architecture.startswith(STANFORD)
    folders = [] if stanford else _dense_folders(directory)
    if not stanford and not folders:
        return None
    settings = _Settings(directory, stanford)
    if stanford:
        dim = settings.number("dim", "dim", STANFORD_DIM)
        projections = [ProjectionSpec(folder=None, inputs=backbone.hidden_size, outputs=dim)]
    else:
        projections = [_projection(directory, folder) for folder in folders]
    _check_chain(projections, backbone.hidden_size)
    _refuse_text_changes(directory, settings)
    expand = settings.flag("do_query_expansion", None, True)
    spec = LateInteractionSpec(
        projections=tuple(projections),
        query_marker=settings.text("query_prefix", "query_token_id", "[unused0]" if stanford else "[Q] "),
        document_marker=settings.text("document_prefix", "doc_token_id", "[unused1]" if stanford else "[D] "),
        query_length=min(settings.number("query_length", "query_maxlen", 32), backbone.max_length),
        expand_queries=expand,
        attend_to_expansion=expand
        and settings.flag("attend_to_expansion_tokens", "attend_to_mask_tokens", False),
        skip_words=settings.skip_words(),
    )
    return spec, min(settings.number("document_length", "doc_maxlen", 180), backbone.max_length)


class _Settings:
    """Both files, asked in turn; null counts as absent."""

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
                    raise UnsupportedCheckpoint(f"{file}: {name} is {value!r}")
                return value
        return default

    def text(self, key: str, stanford_key: str | None, default: str) -> str:
        return str(self._find(key, stanford_key, str, default))

    def number(self, key: str, stanford_key: str | None, default: int) -> int:
        return int(self._find(key, stanford_key, int, default))

    def flag(self, key: str, stanford_key: str | None, default: bool) -> bool:
        return bool(self._find(key, stanford_key, bool, default))

    def skip_words(self) -> tuple[str, ...]:
        """PyLate lists the words; Stanford's code skips punctuation unless `mask_punctuation` is false."""
        skips = self.flag("", "mask_punctuation", True)
        words = self._find("skiplist_words", None, list, list(string.punctuation) if skips else [])
        return tuple(str(word) for word in words)


def _read_optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _dense_folders(directory: Path) -> list[str]:
    """Folders of the Dense modules when modules.json is exactly Transformer, Dense, …; else nothing.

    A Dense that follows a Pooling projects one vector per text: another kind of model.
    """
    path = directory / "modules.json"
    if not path.exists():
        return []
    modules = read_json(path, list)
    try:
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        folders = [str(module["path"]) for module in modules]
    except (KeyError, TypeError) as error:
        raise UnsupportedCheckpoint(f"modules.json has an entry without type and path: {error!r}") from error
    if len(kinds) < 2 or kinds[0] != "Transformer" or set(kinds[1:]) != {"Dense"}:
        return []
    for folder in folders[1:]:
        if folder in ("", "..") or Path(folder).name != folder:
            raise UnsupportedCheckpoint(f"modules.json: the path {folder!r} is no folder beside it")
    return folders[1:]


def _projection(directory: Path, folder: str) -> ProjectionSpec:
    config = read_json(directory / folder / "config.json")
    activation = str(config.get("activation_function", "Identity"))
    if activation.rsplit(".", 1)[-1] != "Identity":
        raise UnsupportedCheckpoint(
            f"{folder}/config.json names the activation {activation!r}; a projection of token vectors has none"
        )
    try:
        return ProjectionSpec(
            folder=folder,
            inputs=int(config["in_features"]),
            outputs=int(config["out_features"]),
            bias=bool(config.get("bias", True)),
            residual=bool(config.get("use_residual", False)),
        )
    except KeyError as missing:
        raise UnsupportedCheckpoint(f"{folder}/config.json lacks {missing.args[0]!r}") from None


def _check_chain(projections: list[ProjectionSpec], width: int) -> None:
    for projection in projections:
        if projection.inputs != width:
            raise UnsupportedCheckpoint(
                f"{projection.folder}/config.json: in_features is {projection.inputs}, what comes in is {width} wide"
            )
        width = projection.outputs


def _refuse_text_changes(directory: Path, settings: _Settings) -> None:
    """What a checkpoint may ask to do to every text before it is tokenised, and we would otherwise ignore."""
    if _read_optional(directory / "sentence_bert_config.json").get("do_lower_case"):
        raise UnsupportedCheckpoint("sentence_bert_config.json: do_lower_case is not served")
    name = settings.pylate.get("default_prompt_name")
    if name is not None and (settings.pylate.get("prompts") or {}).get(name):
        raise UnsupportedCheckpoint(f"{PYLATE_CONFIG}: a default prompt ({name!r}) is not served")
