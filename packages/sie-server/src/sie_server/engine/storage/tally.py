"""The progress of a download or a load, in bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("sie_server.hub")
LOOK_S, LOG_S = 0.5, 10.0  # how often the progress of a download is measured, and how often it is logged


class LoadStopped(Exception):
    """The load was given up; its thread has nothing left to do."""


@dataclass
class Tally:
    """Bytes of the files downloaded or of the tensors loaded so far. Another thread may read it."""

    nbytes: int = 0
    total: int | None = None  # None: not known yet
    before: int = 0  # bytes that were present before the download
    checked: int = 0  # bytes compared with the hub's hashes
    commit: str | None = None  # of the version that the hub names
    warning: str | None = None  # why an older version is served
    stopped: bool = False  # the load was given up

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor and return it.

        Raises:
            LoadStopped: the load was given up.
        """
        self._go_on()
        self.nbytes += tensor.nbytes
        return tensor

    def check(self, nbytes: int) -> None:
        """Count bytes that were compared with the hub's hashes.

        Raises:
            LoadStopped: the load was given up.
        """
        self._go_on()
        self.checked += nbytes

    def _go_on(self) -> None:
        if self.stopped:
            raise LoadStopped


@contextmanager
def watched(source: str, blobs: Mapping[Path, int], tally: Tally) -> Iterator[None]:
    """Update the tally and log the progress while the block runs."""
    tally.total, tally.nbytes = sum(blobs.values()), _downloaded(blobs)
    tally.before, ended = tally.nbytes, Event()

    def look() -> None:
        logged = time.monotonic()
        while not ended.wait(LOOK_S):
            tally.nbytes = _downloaded(blobs)
            if time.monotonic() - logged >= LOG_S:
                logged = time.monotonic()
                log.info(
                    "downloading %s: %.1f of %.1f MiB",
                    source,
                    tally.nbytes / 2**20,
                    (tally.total or 0) / 2**20,
                )

    watcher = Thread(target=look, name="sie-watch-download", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _downloaded(blobs: Mapping[Path, int]) -> int:
    return sum(min(size, _size(blob)) for blob, size in blobs.items())


def _size(blob: Path) -> int:
    """Return the bytes of a content downloaded so far. Earlier downloads may have left files: the newest counts."""
    found = [(0.0, 0)]
    for path in blob.parent.glob(f"{blob.name}*"):
        with suppress(OSError):  # complete and just renamed
            status = path.stat()
            found.append((status.st_mtime, status.st_size))
    return max(found)[1]
