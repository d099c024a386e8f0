"""The settings of the module Transformer of sentence-transformers.

Source: `Transformer.load_config` in sentence_transformers/base/modules/transformer.py, version 6. Version 1 named the
file after the model type. Without modules.json, the library reads none of these files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.errors import shown
from sie_server.models.spec import UnsupportedCheckpoint, read_json

SENTENCE_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def sentence_file(directory: Path) -> str:
    """Return the name of the file that counts, for messages; `sentence_bert_config.json` if there is none."""
    return next((name for name in SENTENCE_FILES if (directory / name).exists()), SENTENCE_FILES[0])


def sentence_settings(directory: Path) -> dict[str, Any]:
    """Return the content of the file that counts; empty without such a file or without modules.json."""
    path = directory / sentence_file(directory)
    if not path.exists() or not (directory / "modules.json").exists():
        return {}
    return dict(read_json(path))


def check_place(directory: Path) -> None:
    """Refuse a Transformer in a folder of its own, as version 1 saved it: the files next to modules.json are read here.

    Raises:
        UnsupportedCheckpoint: modules.json names another folder.
    """
    path = directory / "modules.json"
    for module in read_json(path, list) if path.exists() else []:
        place = module.get("path") if isinstance(module, dict) else None
        kind = str(module.get("type")).rsplit(".", 1)[-1] if isinstance(module, dict) else None
        if kind == "Transformer" and place not in (None, "", "."):
            raise UnsupportedCheckpoint(
                f"modules.json: the path of Transformer is {shown(place)}, but a config.json is next to modules.json, "
                "so it is unclear which model is meant. Move the files of the folder next to modules.json, and set the "
                'path to ""'
            )
