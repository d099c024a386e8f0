"""ID@REVISION: a branch, tag or commit of a hub repository, wherever a source is named."""

from __future__ import annotations

import re

from sie_server.errors import ConfigError
from sie_server.files import expanded

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
WHERE = (
    "a branch, tag or commit goes after the id (--model ID@REVISION or NAME=ID@REVISION), into `revision` of a YAML "
    "file, or into --revision of `admin load` and `admin swap`"
)


def split_revision(source: str) -> tuple[str, str | None]:
    """Return a source without its revision, and the revision; None: it has none, or the source is a path.

    A path that exists may contain an `@`.

    Raises:
        ConfigError: nothing follows the `@`.
    """
    if "@" not in source or is_path(source):
        return source, None
    name, _, revision = source.partition("@")
    if not HUB_ID.fullmatch(name):
        return source, None
    if not revision:
        raise ConfigError(f"{source!r} has no revision after the @; expected ID@REVISION")
    return name, revision


def is_path(source: str) -> bool:
    """Return whether a source is a path, not a hub id: absolute, dotted, in the home directory, or existing."""
    return source.startswith(("/", "./", "../", "~", "\\")) or _exists(source)


def _exists(source: str) -> bool:
    """Return whether a directory or file exists; False for invalid names."""
    try:
        return expanded(source).exists()
    except (OSError, ValueError):  # the name is too long, or contains a zero
        return False
