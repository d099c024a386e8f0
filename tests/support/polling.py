"""Wait for a condition instead of sleeping for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(holds: Callable[[], Any], within: float = 20) -> None:
    """Wait on the event loop until the condition holds."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"the condition does not hold after {within} s"
        await asyncio.sleep(0.01)


def eventually(holds: Callable[[], Any], within: float = 60) -> bool:
    """Wait until the condition holds; return whether it did in time."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return bool(holds())
