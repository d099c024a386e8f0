"""Return freed memory to the system. glibc keeps it, because bodies and texts arrive in many small parts."""

from __future__ import annotations

import ctypes
import os

from sie_server.api.edge.budget import MIB, Budget

LARGE = 32 * MIB  # freed bytes that are worth the search for free pages at once
SMALL = MIB  # bytes of bodies that are worth it after a while
EVERY_S = 5.0
AFTERWARDS_S = 20.0  # after the last body: a request whose caller has left frees its memory later


class HeapTrim:
    """Notices that memory may have been freed: many bytes at once, or any work for some seconds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._peak = self._total = 0
        self._at = self._until = 0.0
        self._is_pending = False

    def is_due(self, now: float) -> bool:
        """Whether it is worth while to trim now."""
        budget = self._budget
        self._peak = max(self._peak, budget.used)
        if budget.total - self._total >= SMALL:
            self._total, self._until = budget.total, now + AFTERWARDS_S
        freed = self._peak - budget.used >= LARGE
        self._is_pending = now < self._until
        if not freed and not (self._is_pending and now - self._at >= EVERY_S):
            return False
        self._peak, self._at = budget.used, now
        return True

    @property
    def is_pending(self) -> bool:
        """Whether more memory may be freed soon, or bodies have arrived since the last look."""
        return self._is_pending or self._budget.total - self._total >= SMALL


def trim() -> None:
    """Return free pages of the heaps to the system. Other C libraries than glibc are left alone."""
    if os.name == "posix":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
