"""The time of the whole benchmark, and of single runs on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Counts down the seconds of the benchmark: a part that has no time left is reported as not reached."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self.seconds = seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.perf_counter()


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of one run, until its results exist."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start
