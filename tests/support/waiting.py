"""Polling helpers for tests that wait for another thread, task or process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def eventually(holds: Callable[[], bool], within: float = 60) -> bool:
    """Return whether the condition holds at some time within `within` seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


async def until(holds: Callable[[], Any], within: float = 20) -> None:
    """Wait on the event loop until the condition holds."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"not within {within} s"
        await asyncio.sleep(0.01)
