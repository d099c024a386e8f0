"""Follows the models directory: files that are added, changed or removed take effect while the server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple

from sie_server.catalog import ModelConfig
from sie_server.errors import SIEError
from sie_server.serving.loading.lanes import Lane
from sie_server.serving.operators.operations import Operations

log = logging.getLogger("sie_server.watching")
Models = Mapping[str, ModelConfig]
Change = Callable[[], Awaitable[None]]
RETRY_S, LONGEST_RETRY_S = 10.0, 600.0


async def watch(scan: Callable[[], Models], known: Models, operations: Operations, every_s: float) -> None:
    """Scan for models every `every_s` seconds on a thread of its own, until cancelled.

    A scan that blocks, for example on a network file system, does not hold up the end of the process.

    `known` are the models that the server started with.
    """
    follower, trouble, lane = Follower(known, operations), "", Lane("sie-scan", 1)
    try:
        while True:
            await asyncio.sleep(every_s)
            try:
                follower.follow(await lane.run(scan), time.monotonic())
            except Exception as error:  # the next scan may succeed
                if str(error) != trouble:
                    unexpected = not isinstance(error, OSError)
                    log.warning("cannot follow the models directory: %s", error, exc_info=unexpected)
                trouble = str(error)
            else:
                if trouble:
                    log.info("the models directory can be read again")
                trouble = ""
    finally:
        follower.close()
        lane.close()


class Failure(NamedTuple):
    """When a failed change is tried again, and the pause before that."""

    at: float
    pause: float


class Follower:
    """The configuration that the registry has, and the running changes: one per model, independent of each other."""

    def __init__(self, known: Models, operations: Operations) -> None:
        self._operations = operations
        self._applied, self._previous_scan = dict(known), known
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, Failure] = {}

    def follow(self, found: Models, now: float) -> None:
        """Start the changes that follow from a scan. A model whose change is still running waits for a later scan.

        A change counts when two consecutive scans agree on it, so a file that is being copied is not read half-way.
        """
        previous, self._previous_scan = self._previous_scan, found
        for name in sorted({*self._applied, *found} - self._running.keys()):
            if settled(name, self._applied, previous, found):
                self._failed.pop(name, None)
                self._start(name, self._change(name, found.get(name)))
            elif name in self._failed and now >= self._failed[name].at:
                self._start(name, partial(self._operations.retry, name))

    def close(self) -> None:
        """Cancel the running changes."""
        for task in self._running.values():
            task.cancel()

    def _change(self, name: str, config: ModelConfig | None) -> Change:
        if config is None:
            log.info("%s was removed from the models directory", name)
            del self._applied[name]
            return partial(self._operations.remove, name)
        log.info("%s is new or changed in the models directory", name)
        self._applied[name] = config
        return partial(self._operations.update, config)

    def _start(self, name: str, change: Change) -> None:
        self._running[name] = task = asyncio.create_task(self._run(name, change))
        task.add_done_callback(lambda _: self._running.pop(name))

    async def _run(self, name: str, change: Change) -> None:
        last = self._failed.pop(name, None)
        try:
            await change()
        except SIEError as error:
            if error.details.get("permanent"):  # until the files change, which is another change
                log.warning("%s: the change has no effect: %s", name, error.message)
            else:
                self._retry_later(name, last, error.message)
        except Exception as error:
            log.error("unexpected error while %s changed", name, exc_info=error)
            self._retry_later(name, last, type(error).__name__)

    def _retry_later(self, name: str, last: Failure | None, reason: str) -> None:
        pause = next_pause(last.pause if last else None)
        self._failed[name] = Failure(time.monotonic() + pause, pause)
        log.warning("%s: the change has no effect yet, next try in %.0f s: %s", name, pause, reason)


def next_pause(last: float | None) -> float:
    """Return the seconds before the next try. The pause grows, because a failed swap costs a whole load."""
    return RETRY_S if last is None else min(2 * last, LONGEST_RETRY_S)


def settled(name: str, applied: Models, previous: Models, found: Models) -> bool:
    """True when a model differs from its applied configuration and is the same as in the previous scan."""
    return found.get(name) != applied.get(name) and found.get(name) == previous.get(name)
