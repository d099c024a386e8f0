"""The operator's settings for a cross-encoder without template: `truncation` in `sie_reranker.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import yaml

from sie_server.errors import shown
from sie_server.files import read_yaml
from sie_server.templates import TemplateError

Truncation = Literal["longest-first", "query-first"]  # see `engine.text.pair_tokenizer`


def pair_truncation(path: Path) -> Truncation | None:
    """Return how the file's checkpoint cuts pairs; None if there is no file, or it does not say.

    Raises:
        TemplateError: the file is unreadable, or has another field or value.
    """
    if not path.exists():
        return None
    try:
        raw = read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise TemplateError(f"{path.name} cannot be read: {error}") from error
    fields = raw if isinstance(raw, dict) else {}
    # `template: none` says that a checkpoint reads pairs without a template
    if not fields or set(fields) - {"truncation", "template"} or fields.get("template", "none") != "none":
        raise TemplateError(
            f"{path.name} is for a template, but this checkpoint reads query and document as a pair; "
            f"write `truncation: {' or '.join(get_args(Truncation))}`, or remove the file"
        )
    named = fields.get("truncation")
    if named is not None and named not in get_args(Truncation):
        raise TemplateError(
            f"{path.name} has `truncation: {shown(named)}`; expected {' or '.join(get_args(Truncation))}"
        )
    return named
