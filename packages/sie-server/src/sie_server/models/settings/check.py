"""Compare a checkpoint's files with the table of keys: refuse by name, and log unknown keys once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sie_server.errors import cut, shown
from sie_server.models.settings.sentence import sentence_file, sentence_settings
from sie_server.models.settings.table import settings_table
from sie_server.models.spec import UnsupportedCheckpoint, inside, read_json

log = logging.getLogger("sie_server.settings")
LIBRARY = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
TEMPLATE = "chat_template.jinja"
PLAIN = ("tokenizer_config.json", "special_tokens_map.json", LIBRARY)
OUTPUTS = ("last_hidden_state", "logits")  # of the model, which the heads read
PADDING = ("padding", "padding_side", "pad_to_multiple_of", "return_tensors", "return_attention_mask")
MOST_NAMED = 20  # unknown keys in the line of the log


def check_settings(directory: Path, *, native: bool) -> None:
    """Refuse settings that change scores and are not implemented; log the keys that the table lacks.

    `native`: the families here read config.json. Otherwise transformers does, with all of its keys.

    Raises:
        UnsupportedCheckpoint: a setting is refused; the message names file, key, value and reason.
    """
    unknown: list[str] = []
    for file, name, content in _files(directory, native):
        keys = settings_table()[name]
        for key, value in content.items():
            known = keys.get(key)
            if known is None:
                unknown += [f"{file}: {cut(key)}"] if not _names_a_token(name, key) else []
            elif known.refuses(value):
                raise _refused(file, key, value, known.note)
        if name == SENTENCE:
            _check_processing(file, content)
    if unknown:
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        log.info("settings of %s that are not known: %s%s", directory, ", ".join(unknown[:MOST_NAMED]), more)


def check_pair_prompt(directory: Path) -> None:
    """Refuse a cross-encoder whose query sentence-transformers changes: by a default prompt, or by a chat template.

    Raises:
        UnsupportedCheckpoint: there is a default prompt that is not empty, or a chat template.
    """
    tokenizer = read_json(directory / PLAIN[0]) if (directory / PLAIN[0]).exists() else {}
    modalities = sentence_settings(directory).get("modality_config")
    templated = tokenizer.get("chat_template") or (directory / TEMPLATE).exists()
    if templated and (modalities is None or "message" in modalities):
        raise UnsupportedCheckpoint(
            f"the checkpoint has a chat template ({TEMPLATE}, or in {PLAIN[0]}), which is not supported for an encoder "
            "that scores pairs: the library renders every pair with it. If the model was trained without it, remove it"
        )
    settings = read_json(directory / LIBRARY) if (directory / LIBRARY).exists() else {}
    name = settings.get("default_prompt_name")
    if name is not None and (settings.get("prompts") or {}).get(name):
        raise UnsupportedCheckpoint(
            f"{LIBRARY}: default_prompt_name is {shown(name)}, which is not supported for a cross-encoder: the prompt "
            "would precede every query. Set it to null, and send the prompt as a part of the query"
        )


def _check_processing(file: str, content: dict[str, Any]) -> None:
    """Refuse nested settings of the module Transformer that change its token ids or the output that it reads."""
    text = (content.get("modality_config") or {}).get("text") or {}
    for key, accepted in (("method", ("forward",)), ("method_output_name", OUTPUTS)):
        if text.get(key) not in (None, *accepted):
            raise _refused(
                file, f"modality_config.text.{key}", text[key], "another output of the model would be read"
            )
    for part in ("common", "text"):
        for key, value in ((content.get("processing_kwargs") or {}).get(part) or {}).items():
            if key not in PADDING:
                raise _refused(
                    file, f"processing_kwargs.{part}.{key}", value, "it replaces how texts are tokenised"
                )


def _refused(file: str, key: str, value: Any, reason: str) -> UnsupportedCheckpoint:
    return UnsupportedCheckpoint(
        f"{file}: {cut(key)} is {shown(value)}, which is not supported: {reason}. Remove it if the model does "
        "not need it"
    )


def _files(directory: Path, native: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the path of each file, its name in the table, and its content."""
    for name in (*(["config.json"] if native else []), *PLAIN):
        if (directory / name).exists():
            yield name, name, read_json(directory / name)
    if not (directory / "modules.json").exists():
        return
    sentence = sentence_file(directory)
    if (directory / sentence).exists():
        yield sentence, SENTENCE, read_json(directory / sentence)
    for module in read_json(directory / "modules.json", list):
        if not isinstance(module, dict):
            continue
        yield "modules.json", "modules.json", module
        kind, path = str(module.get("type")).rsplit(".", 1)[-1], str(module.get("path") or "")
        file = inside(directory, path) / "config.json"
        if path and kind in settings_table() and file.exists():
            yield f"{path}/config.json", kind, read_json(file)


def _names_a_token(file: str, key: str) -> bool:
    """Return whether the key gives a special token a name of its own, as `image_token`."""
    return key.endswith("_token") and file in PLAIN
