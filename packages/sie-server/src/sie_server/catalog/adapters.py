"""`--adapter`: the LoRA adapters that the operator names at start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from sie_server.catalog.entries import ModelConfig
from sie_server.config import ConfigError, suggest
from sie_server.wire import AdapterName


def configured_adapters(
    values: Iterable[str], models: Mapping[str, ModelConfig]
) -> dict[str, dict[str, str]]:
    """Values of `--adapter`, MODEL:NAME=SOURCE → model → name → source.

    Raises:
        ConfigError: another form, or a model nobody knows.
    """
    found: dict[str, dict[str, str]] = {}
    for value in values:
        target, _, source = value.partition("=")
        model, _, name = target.rpartition(":")
        if not (model and name and source):
            raise ConfigError(f"--adapter {value!r}: expected MODEL:NAME=DIRECTORY or MODEL:NAME=HUB_ID")
        try:
            msgspec.convert(name, AdapterName)
        except msgspec.ValidationError:
            raise ConfigError(
                f"--adapter {value!r}: the adapter's name {name!r} has characters other than letters, digits and ._-, "
                "or more than 100"
            ) from None
        if model not in models:
            raise ConfigError(f"--adapter {value!r}: {model!r} is no model{suggest(model, list(models))}")
        found.setdefault(model, {})[name] = source
    return found
