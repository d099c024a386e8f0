"""Multi-vector encoders saved by sentence-transformers 6 → prompts, lengths and skip words.

The layout (https://sbert.net/docs/package_reference/multi_vector_encoder/): `modules.json` lists a Transformer, Dense
modules over token vectors, a MultiVectorMask and a Normalize. Markers are prompts, tokenised together with the text,
which is not stripped; lengths and query expansion are in `sentence_bert_config.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.prompts import read_prompts
from sie_server.models.heads.modular import library_config
from sie_server.models.heads.projections import TOKENS, check_chain, read_projection
from sie_server.models.spec import BackboneSpec, LateInteractionSpec, UnsupportedCheckpoint, read_json

MASK, NORMALIZE = "MultiVectorMask", "Normalize"
TRANSFORMER_CONFIG, LIBRARY_CONFIG = "sentence_bert_config.json", "config_sentence_transformers.json"
# Settings of the Transformer module that change the output, and the supported value of each
FIXED = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": TOKENS,
    "processing_kwargs": {},
}
# PyLate's settings, which the library would mix with its own where a MultiVectorMask exists
FOREIGN = (
    "query_prefix",
    "document_prefix",
    "skiplist_words",
    "do_query_expansion",
    "attend_to_expansion_tokens",
)


def is_multi_vector(directory: Path, modules: list[tuple[str, str]]) -> bool:
    """Return True for a directory in this layout; `modules` are kind and folder of each module."""
    return (
        any(kind == MASK for kind, _ in modules)
        or library_config(directory).get("model_type") == "MultiVectorEncoder"
    )


def read_multi_vector(
    directory: Path, modules: list[tuple[str, str]], backbone: BackboneSpec, limit: int
) -> tuple[LateInteractionSpec, int]:
    """Return the head of a `MultiVectorEncoder` and its document limit in tokens.

    `modules` are kind and folder of each module; `limit` is that of the tokenizer, in tokens.

    Raises:
        UnsupportedCheckpoint: a file is unreadable, or has an unsupported setting.
    """
    folders = dict(modules)
    kinds = [kind for kind, _ in modules]
    dense = [folder for kind, folder in modules if kind == "Dense"]
    expected = ["Transformer", *["Dense"] * len(dense), MASK, NORMALIZE]
    if kinds != expected or modules[0][1]:
        raise UnsupportedCheckpoint(
            f"modules.json lists {', '.join(kinds)}; a multi-vector encoder must have a Transformer at the top level, "
            f"Dense modules, {MASK}, {NORMALIZE}"
        )
    _refuse_foreign(directory)
    projections = tuple(read_projection(directory, folder, TOKENS) for folder in dense)
    settings = _transformer_settings(directory)
    prompts = read_prompts(directory, {})
    if prompts.default is not None and prompts.texts[prompts.default]:
        raise UnsupportedCheckpoint(
            f"{LIBRARY_CONFIG}: a default prompt (default_prompt_name {prompts.default!r}) is not supported"
        )
    _check_normalize(directory, folders[NORMALIZE])
    expansion = _expansion(settings)
    floor, fixed = expansion.get("length", 0), expansion.get("strategy") == "fixed"
    longest = floor if fixed else max(_length(settings, "query_length", limit), floor)
    spec = LateInteractionSpec(
        projections=projections,
        dim=check_chain(projections, backbone.hidden_size),
        query_prompt=prompts.of(True),
        document_prompt=prompts.of(False),
        strip=False,
        query_length=min(longest, backbone.max_length),
        expand_to=min(floor, backbone.max_length),
        attend_to_expansion=bool(expansion.get("attend")),
        expansion_token=expansion.get("token"),
        skip_words=_skip_words(directory, folders[MASK]),
    )
    return spec, min(_length(settings, "document_length", limit), backbone.max_length)


def _refuse_foreign(directory: Path) -> None:
    config = library_config(directory)
    if found := [key for key in FOREIGN if config.get(key) is not None]:
        raise UnsupportedCheckpoint(
            f"{LIBRARY_CONFIG}: {', '.join(found)} of PyLate's layout cannot be combined with a {MASK}"
        )


def _transformer_settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = read_json(directory / TRANSFORMER_CONFIG)
    for name, supported in FIXED.items():
        if settings.get(name, supported) != supported:
            raise UnsupportedCheckpoint(
                f"{TRANSFORMER_CONFIG}: {name} {settings[name]!r} is not supported; supported: {supported!r}"
            )
    return settings


def _length(settings: dict[str, Any], name: str, default: int) -> int:
    value = settings.get(name)
    if value is None:
        return default
    if type(value) is not int or value < 4:
        raise UnsupportedCheckpoint(
            f"{TRANSFORMER_CONFIG}: {name} is {value!r}; expected a whole number of at least 4"
        )
    return value


def _expansion(settings: dict[str, Any]) -> dict[str, Any]:
    """Read `query_expansion` (the library's `QueryExpansionConfig`); empty: queries are not expanded."""
    given = settings.get("query_expansion")
    if given is None:
        return {}
    known = (
        isinstance(given, dict)
        and given.keys() <= {"strategy", "attend", "token", "length"}
        and given.get("strategy") in ("fixed", "min")
        and isinstance(given.get("attend", False), bool)
        and isinstance(given.get("token"), str | None)
        and given.get("length") is not None
    )
    if not known:
        raise UnsupportedCheckpoint(
            f"{TRANSFORMER_CONFIG}: query_expansion is {given!r}; "
            "expected strategy ('fixed' or 'min'), length, and optionally attend and token"
        )
    _length(given, "length", 0)
    return dict(given)


def _skip_words(directory: Path, folder: str) -> tuple[str, ...]:
    config = read_json(directory / folder / "config.json")
    words, tasks = config.get("skiplist_words") or [], config.get("skiplist_tasks", ["document"])
    if not isinstance(words, list) or (words and tasks != ["document"]) or config.get("keep_only_token_ids"):
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: only a skip list of words in documents is supported, got {config!r}"
        )
    return tuple(str(word) for word in words)


def _check_normalize(directory: Path, folder: str) -> None:
    path = directory / folder / "config.json"
    config = read_json(path) if path.exists() else {}
    reads = config.get("module_input_name")
    if reads != TOKENS or config.get("module_output_name", reads) != TOKENS:
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: input and output must be {TOKENS!r}, got the input {reads!r}"
        )
