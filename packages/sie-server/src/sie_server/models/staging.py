"""Pinned memory, through which the integers of batches reach a GPU. A copy from it does not wait for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BUFFERS = 3  # one is filled while two passes are under way
FEWEST, MOST = 2**16, 2**24  # integers of a buffer, 256 KiB and 64 MiB


class Event(Protocol):
    """The methods of `torch.cuda.Event` that are used."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int32, pin_memory=True)


def _event() -> Event:
    made: Any = torch.cuda.Event()
    return made  # type: ignore[no-any-return]


class Staging:
    """A ring of pinned buffers for one device. Only one thread at a time may use it.

    An event per buffer records the end of the copy from it, and the buffer is filled again after that. A batch that is
    larger than its buffer makes the buffer grow, up to `MOST` integers. A still larger one is copied from ordinary
    memory, which waits for the GPU; it is never cut.
    """

    def __init__(
        self,
        device: torch.device,
        pinned: Callable[[int], Tensor] = _pinned,
        event: Callable[[], Event] = _event,
    ) -> None:
        self._device, self._pinned, self._event = device, pinned, event
        self._buffers: list[Tensor | None] = [None] * BUFFERS
        self._copied: list[Event | None] = [None] * BUFFERS
        self._next = 0

    def send(self, parts: Sequence[npt.NDArray[np.integer]]) -> Tensor:
        """Return the parts one after the other on the device, [integers] int32."""
        count = sum(len(part) for part in parts)
        if count > MOST:
            return torch.from_numpy(joined(parts)).to(self._device)
        place, self._next = self._next, (self._next + 1) % BUFFERS
        if (copied := self._copied[place]) is not None:
            copied.synchronize()
        buffer = self._buffers[place]
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[place] = self._pinned(max(FEWEST, 1 << (count - 1).bit_length()))
        joined(parts, into=buffer.numpy()[:count])
        sent = buffer[:count].to(self._device, non_blocking=True, copy=True)
        done = self._copied[place] = self._copied[place] or self._event()
        done.record()
        return sent


def joined(
    parts: Sequence[npt.NDArray[np.integer]], into: npt.NDArray[np.int32] | None = None
) -> npt.NDArray[np.int32]:
    """Return the parts one after the other; `into` is the array to write to, None: a new one."""
    if into is None:
        into = np.empty(sum(len(part) for part in parts), np.int32)
    np.concatenate(list(parts), out=into, casting="same_kind")
    return into
