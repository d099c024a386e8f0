"""The server under attack and the probe that observes it. Both are replaced if the server dies."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from support.checkpoints import colbert
from support.hostile.probe import Probe, probing
from support.hostile.scale import ALLOWED_S
from support.servers import processes
from support.servers.processes import Server
from support.waiting import eventually


@dataclass(frozen=True)
class Observed:
    """A server and its probe; `rest` is its resident memory after the first requests."""

    server: Server
    probe: Probe
    rest: float

    @property
    def sound(self) -> bool:
        """Whether the server still answers, possibly after a while."""
        now = time.monotonic()
        alive = self.server.process.poll() is None
        return alive and eventually(lambda: self.probe.caught_up(now), ALLOWED_S)


class Targets:
    """Starts servers, one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, contextlib.ExitStack()
        self._observed: Observed | None = None

    def current(self) -> Observed:
        if self._observed is None or not self._observed.sound:
            with contextlib.suppress(AssertionError):
                self.close()
            self._observed = self._start()
        return self._observed

    def _start(self) -> Observed:
        directory = self._folder / "colbert"
        if not directory.exists():
            colbert.make_pylate(directory, "bert")
        models = ("--model", "sie/mini-en", "--model", f"toy/colbert={directory}")
        # the cache of documents would grow with every attack, up to its limit
        server = self._stack.enter_context(
            processes.running(self._folder, *models, "--document-cache-mb", "0")
        )
        log = self._folder / f"probe-{server.port}.log"
        probe = self._stack.enter_context(probing(server.port, server.process.pid, log))
        ready = time.monotonic()
        assert eventually(lambda: probe.caught_up(ready + 1))
        return Observed(server, probe, probe.memory())

    def close(self) -> None:
        self._observed = None
        self._stack.close()
