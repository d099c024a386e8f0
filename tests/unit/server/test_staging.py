"""Buffers are filled only after the copies from them have ended, and grow with the largest batch, up to a bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sie_server.models import staging
from sie_server.models.staging import BUFFERS, Staging


class Memory:
    """Buffers in ordinary memory, and events that note what is done."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.events: list[str] = []

    def pinned(self, size: int) -> Tensor:
        self.sizes.append(size)
        return torch.full((size,), -1, dtype=torch.int32)

    def event(self) -> Noted:
        return Noted(self, sum(name.startswith("new") for name in self.events))


class Noted:
    def __init__(self, memory: Memory, number: int) -> None:
        self._events, self._number = memory.events, number
        self._events.append(f"new {number}")

    def record(self) -> None:
        self._events.append(f"record {self._number}")

    def synchronize(self) -> None:
        self._events.append(f"wait {self._number}")


def sent(ring: Staging, *counts: int) -> list[int]:
    parts = [np.arange(count) + 10 * i for i, count in enumerate(counts)]
    result = ring.send(parts)
    assert result.dtype == torch.int32
    assert result.tolist() == np.concatenate(parts).tolist()
    return result.tolist()


def test_a_buffer_waits_for_the_copy_from_it() -> None:
    memory = Memory()
    ring = Staging(torch.device("cpu"), memory.pinned, memory.event)
    for count in range(1, 6):
        sent(ring, count, 0, 2)
    assert len(memory.sizes) == BUFFERS == 3
    assert memory.events == [
        *["new 0", "record 0", "new 1", "record 1", "new 2", "record 2"],
        *["wait 0", "record 0", "wait 1", "record 1"],
    ]


def test_tensors_on_the_device_are_not_overwritten() -> None:
    memory = Memory()
    ring = Staging(torch.device("cpu"), memory.pinned, memory.event)
    first = ring.send([np.arange(5)])
    for _ in range(BUFFERS + 1):
        ring.send([np.arange(5) + 100])
    assert first.tolist() == [0, 1, 2, 3, 4]


def test_buffers_grow_to_a_bound_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "FEWEST", 8)
    monkeypatch.setattr(staging, "MOST", 64)
    memory = Memory()
    ring = Staging(torch.device("cpu"), memory.pinned, memory.event)
    for count in (8, 8, 8, 9, 64, 65, 1000, 3):
        assert len(sent(ring, count)) == count
    # three of the first size, two that grow; 65 and 1,000 have none
    assert memory.sizes == [8, 8, 8, 16, 64]
    assert (
        memory.events.count("wait 0") == memory.events.count("wait 1") == memory.events.count("wait 2") == 1
    )


def test_numbers_that_do_not_fit_are_refused() -> None:
    """A column of fractions would be a fault of the packer; it is not rounded."""
    with pytest.raises(TypeError, match="same_kind"):
        staging.joined([np.array([0.5])])  # type: ignore[list-item]
