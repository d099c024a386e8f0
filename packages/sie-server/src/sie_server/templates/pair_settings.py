"""The operator's settings for a cross-encoder without template: `truncation` and `label` in `sie_reranker.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from sie_server.errors import shown
from sie_server.files import read_yaml
from sie_server.templates import TemplateError

Truncation = Literal["longest-first", "query-first"]  # see `engine.text.pair_tokenizer`
TRUNCATIONS = " or ".join(get_args(Truncation))


@dataclass(frozen=True)
class PairSettings:
    """How pairs are cut, and the name or number of the label that is the score; None: the file does not say."""

    truncation: Truncation | None = None
    label: str | int | None = None


def read_pair_settings(path: Path) -> PairSettings:
    """Return the settings of the file's checkpoint; without the file, none.

    Raises:
        TemplateError: the file is unreadable, or has another field or value.
    """
    if not path.exists():
        return PairSettings()
    try:
        raw = read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TemplateError(f"{path.name} cannot be read: {error}") from error
    fields: dict[Any, Any] = raw if isinstance(raw, dict) else {}
    # `template: none` says that a checkpoint reads pairs without a template
    known = {"truncation", "label", "template"}
    if not fields or set(fields) - known or fields.get("template", "none") != "none":
        raise TemplateError(
            f"{path.name} is for a template, but this checkpoint reads query and document as a pair; "
            f"write `truncation: {TRUNCATIONS}` or `label: NAME`, or remove the file"
        )
    named, label = fields.get("truncation"), fields.get("label")
    if named is not None and named not in get_args(Truncation):
        raise TemplateError(f"{path.name} has `truncation: {shown(named)}`; expected {TRUNCATIONS}")
    if label is not None and type(label) not in (str, int):
        raise TemplateError(
            f"{path.name} has `label: {shown(label)}`; expected the name or the number of a label. "
            "Write a name such as 'yes' in quotes"
        )
    return PairSettings(named, label)
