"""The LoRA adapters that the operator names at start with `--adapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from sie_server.catalog.entries import ModelConfig, id_of
from sie_server.config import ConfigError, suggest
from sie_server.wire import AdapterName


def configured_adapters(
    values: Iterable[str], models: Mapping[str, ModelConfig]
) -> dict[str, dict[str, str]]:
    """Parse values of `--adapter`, MODEL:NAME=SOURCE, into model → name → source.

    Raises:
        ConfigError: malformed value, or unknown model.
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
                f"--adapter {value!r}: invalid adapter name {name!r}; names may contain letters, digits and ._-, "
                "at most 100 characters"
            ) from None
        known = id_of(model, models)
        if known not in models:
            raise ConfigError(f"--adapter {value!r}: unknown model {model!r}{suggest(model, list(models))}")
        if stages := models[known].stages:
            raise ConfigError(
                f"--adapter {value!r}: {model!r} is a cascade; give the adapter to its last stage, {stages[-1].model}"
            )
        found.setdefault(known, {})[name] = source
    return found
