"""Flags generated from the fields of `ServerConfig`, and the configuration that they make."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, get_args, get_origin

import click
import msgspec

from sie_server.config import ServerConfig, is_secret, is_table, load_config

Command = Callable[..., Any]
ENGINE_FIELDS = ("device", "dtype", "offline", "threads", "device_threads")  # also apply without a server


def config_options(*fields: str) -> Callable[[Command], Command]:
    """Add a flag for each of the named configuration fields (default: all) that is not a secret."""

    def decorate(command: Command) -> Command:
        for field in reversed(msgspec.structs.fields(ServerConfig)):
            if (not fields or field.name in fields) and not (is_secret(field) or is_table(field)):
                command = _option(field)(command)
        return click.option(
            "--config", "config_file", envvar="SIE_CONFIG", help="TOML file with the same settings"
        )(command)

    return decorate


def _option(field: msgspec.structs.FieldInfo) -> Callable[[Command], Command]:
    meta = next((m for m in get_args(field.type) if isinstance(m, msgspec.Meta)), None)
    kind = get_args(field.type)[0] if meta else field.type
    shown = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    flag = f"--{field.name.replace('_', '-')}"
    default = "" if shown is None else f"; default: {shown}"
    description = meta.description if meta else ""
    text = f"{description or ''}  [SIE_{field.name.upper()}{default}]"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=text)
    if get_origin(kind) is tuple:
        metavar = {"model": "ID[=SOURCE]", "cors_origins": "ORIGIN"}.get(field.name, "DIRECTORY")
        return click.option(flag, field.name, multiple=True, default=None, metavar=metavar, help=text)
    choices = [str(c) for c in get_args(kind)] if all(isinstance(c, str) for c in get_args(kind)) else []
    parameter = (
        click.Choice(choices) if choices else {int: click.INT, float: click.FLOAT}.get(kind, click.STRING)
    )
    return click.option(flag, field.name, type=parameter, default=None, help=text)


def config_of(config_file: str | None, flags: dict[str, Any]) -> ServerConfig:
    """Return the configuration from the file, the environment and the flags that were given.

    Raises:
        ConfigError: a key or value is invalid.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return load_config(given, os.environ, config_file)
