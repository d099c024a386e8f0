"""Follows the models directory: what is added, changed or removed there takes effect while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from sie_server.catalog import ModelConfig, ModelsDirectory, with_configured
from sie_server.errors import SIEError
from sie_server.serving.registry import Registry

log = logging.getLogger("sie_server.watching")


async def watch(
    directory: ModelsDirectory,
    configured: tuple[str, ...],
    known: Mapping[str, ModelConfig],
    registry: Registry,
    every_s: float,
) -> None:
    """Look at the directory every so many seconds, for ever; `known` is what the registry began with.

    A change counts once two looks in a row agree on it, so a file that is being copied is not read half.
    """
    applied, before = dict(known), dict(known)
    while True:
        await asyncio.sleep(every_s)
        try:
            found = with_configured(configured, await asyncio.to_thread(directory.scan))
        except OSError as error:
            log.warning("the models directory cannot be read, nothing is changed: %s", error)
            continue
        names = [name for name in {**applied, **found} if settled(name, applied, before, found)]
        before = found
        for name in names:
            if name in found:
                applied[name] = found[name]
            else:
                del applied[name]
        await asyncio.gather(*(_apply(name, found.get(name), registry) for name in names))


def settled(
    name: str,
    applied: Mapping[str, ModelConfig],
    before: Mapping[str, ModelConfig],
    found: Mapping[str, ModelConfig],
) -> bool:
    """True when a model is another than the registry was told, and the same as at the look before."""
    return found.get(name) != applied.get(name) and found.get(name) == before.get(name)


async def _apply(name: str, config: ModelConfig | None, registry: Registry) -> None:
    try:
        if config is None:
            log.info("%s was removed from the models directory", name)
            await registry.remove(name)
        else:
            log.info("%s is new or changed in the models directory", name)
            await registry.update(config)
    except SIEError as error:
        log.warning("%s: the change has no effect: %s", name, error.message)
