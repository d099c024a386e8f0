"""Configuration, layered once: defaults < file < environment < flags. An unknown key is an error."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from sie_server.config.environment import settings
from sie_server.config.options import NAME_LENGTH, ServerConfig, is_secret
from sie_server.errors import ConfigError, shown
from sie_server.files import read_text

WORDS = {int: "an integer", float: "a number", bool: "true or false"}
LISTS = {"model", "adapter", "source_roots", "cors_origins"}


def load_config(flags: Mapping[str, Any], environment: Mapping[str, str], file: str | None) -> ServerConfig:
    """Merge the sources into one configuration. `flags` contains only the flags on the command line.

    Raises:
        ConfigError: unknown key, wrong type or unreadable file, named in a one-line message.
    """
    layers = {"file": _read_file(file), "environment": _read_environment(environment), "flag": dict(flags)}
    merged: dict[str, Any] = {}
    for source, layer in layers.items():
        _check_layer(layer, source, file)
        merged.update(layer)
    return _convert(merged, strict=False)


def _convert(layer: dict[str, Any], *, strict: bool) -> ServerConfig:
    return msgspec.convert(layer, ServerConfig, strict=strict, dec_hook=lambda kind, value: kind(value))


def _check_layer(layer: dict[str, Any], source: str, file: str | None) -> None:
    """Check one layer, so that the message can name the source of a wrong value."""
    where = f"{file}: " if source == "file" else "environment: " if source == "environment" else ""
    for key in layer:
        if key not in ServerConfig.__struct_fields__:
            raise ConfigError(
                f"{where}unknown option {_spell(key, source)}{suggest(key, ServerConfig.__struct_fields__)}"
            )
    try:
        _convert(layer, strict=source == "file")
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        raise ConfigError(f"{where}{_spell(key, source)}: {_reason(key, layer.get(key), reason)}") from None


def _reason(key: str, value: Any, reason: str) -> str:
    """Return why a value is wrong: the values that the option has, if it is none of them, else msgspec's reason."""
    field = next((f for f in msgspec.structs.fields(ServerConfig) if f.name == key), None)
    if field is None or is_secret(field):
        return reason
    kind = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
    if key == "device_threads":
        return f"expected auto or a number of threads, at least 1, got {shown(str(value))}"
    if not isinstance(value, str):
        return reason
    wanted = WORDS.get(kind) or ("one of " + ", ".join(get_args(kind)) if get_origin(kind) is Literal else "")
    if not wanted or not reason.startswith(
        ("Invalid enum", f"Expected `{getattr(kind, '__name__', '')}`, got")
    ):
        return reason
    return f"expected {wanted}, got {shown(value)}" + ("" if value else "; remove it to use the default")


def _spell(key: str, source: str) -> str:
    name = key.split("[")[0]
    return {"environment": f"SIE_{name.upper()}", "flag": f"--{name.replace('_', '-')}"}.get(
        source, repr(name)
    )


def suggest(wrong: str, known: tuple[str, ...] | list[str], *, cutoff: float = 0.5) -> str:
    """Return `; did you mean …?` with names that are similar by at least `cutoff` (1: equal), or an empty string.

    The comparison takes quadratic time, so a text that is too long to be a name is not compared.
    """
    if len(wrong) > NAME_LENGTH:
        return ""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), list(lower), n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(lower[c]) for c in close)}?" if close else ""


def _read_file(file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(read_text(Path(file)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error}") from error


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: [part.strip() for part in value.split(",") if part.strip()] if key in LISTS else value
        for key, value in settings(environment).items()
    }
