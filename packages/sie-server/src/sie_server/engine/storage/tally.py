"""The progress of a download or a load, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class LoadStopped(Exception):
    """The load was given up; its thread has nothing left to do."""


@dataclass
class Tally:
    """Bytes of the files downloaded or of the tensors loaded so far. Another thread may read it."""

    nbytes: int = 0
    total: int | None = None  # None: not known yet
    before: int = 0  # bytes that were present before the download
    stopped: bool = False  # the load was given up

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor and return it.

        Raises:
            LoadStopped: the load was given up.
        """
        if self.stopped:
            raise LoadStopped
        self.nbytes += tensor.nbytes
        return tensor
