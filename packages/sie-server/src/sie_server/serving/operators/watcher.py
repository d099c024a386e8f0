"""Follows the models directory: what is added, changed or removed there takes effect while the server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

from sie_server.catalog import ModelConfig
from sie_server.errors import SIEError
from sie_server.serving.operators.operations import Operations

log = logging.getLogger("sie_server.watching")
Models = Mapping[str, ModelConfig]
Change = Callable[[], Awaitable[None]]
RETRY_S, LONGEST_RETRY_S = 10.0, 600.0


async def watch(look: Callable[[], Models], known: Models, operations: Operations, every_s: float) -> None:
    """`look` for models every so many seconds, on another thread, for ever; `known` is what the server began with."""
    follower, trouble = Follower(known, operations), ""
    try:
        while True:
            await asyncio.sleep(every_s)
            try:
                follower.follow(await asyncio.to_thread(look), time.monotonic())
            except Exception as error:  # whatever it is, the next look may be better
                if str(error) != trouble:
                    unexpected = not isinstance(error, OSError)
                    log.warning("cannot follow the models directory: %s", error, exc_info=unexpected)
                trouble = str(error)
            else:
                if trouble:
                    log.info("the models directory can be followed again")
                trouble = ""
    finally:
        follower.close()


class Failure(NamedTuple):
    """When a change that failed is tried again, and how long after it failed."""

    at: float
    pause: float


class Follower:
    """What the registry was told, and the changes that are under way: one per model, and none waits for another's."""

    def __init__(self, known: Models, operations: Operations) -> None:
        self._operations = operations
        self._told, self._before = dict(known), known
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, Failure] = {}

    def follow(self, found: Models, now: float) -> None:
        """Begin what has to be done after a look; a model with a change under way waits for a later look.

        A change counts once two looks in a row agree on it, so a file that is being copied is not read half.
        """
        before, self._before = self._before, found
        for name in sorted({*self._told, *found} - self._running.keys()):
            if settled(name, self._told, before, found):
                self._failed.pop(name, None)
                self._begin(name, self._tell(name, found.get(name)))
            elif name in self._failed and now >= self._failed[name].at:
                self._begin(name, partial(self._operations.retry, name))

    def close(self) -> None:
        """Stop waiting for what is under way."""
        for task in self._running.values():
            task.cancel()

    def _tell(self, name: str, config: ModelConfig | None) -> Change:
        if config is None:
            log.info("%s was removed from the models directory", name)
            del self._told[name]
            return partial(self._operations.remove, name)
        log.info("%s is new or changed in the models directory", name)
        self._told[name] = config
        return partial(self._operations.update, config)

    def _begin(self, name: str, change: Change) -> None:
        self._running[name] = task = asyncio.create_task(self._see_through(name, change))
        task.add_done_callback(lambda _: self._running.pop(name))

    async def _see_through(self, name: str, change: Change) -> None:
        last = self._failed.pop(name, None)
        try:
            await change()
        except SIEError as error:
            if error.details.get("permanent"):  # until the files change, which is another change
                log.warning("%s: the change has no effect: %s", name, error.message)
            else:
                self._later(name, last, error.message)
        except Exception as error:
            log.error("unexpected error while %s changed", name, exc_info=error)
            self._later(name, last, type(error).__name__)

    def _later(self, name: str, last: Failure | None, reason: str) -> None:
        pause = next_pause(last.pause if last else None)
        self._failed[name] = Failure(time.monotonic() + pause, pause)
        log.warning("%s: the change has no effect yet, next try in %.0f s: %s", name, pause, reason)


def next_pause(last: float | None) -> float:
    """How long a change that failed has to wait: a failed swap costs a whole load, so longer every time."""
    return RETRY_S if last is None else min(2 * last, LONGEST_RETRY_S)


def settled(name: str, told: Models, before: Models, found: Models) -> bool:
    """True when a model is another than the registry was told, and the same as at the look before."""
    return found.get(name) != told.get(name) and found.get(name) == before.get(name)
