"""Return freed memory to the system. glibc keeps it, because bodies and texts arrive in many small parts."""

from __future__ import annotations

import ctypes
import os

from sie_server.api.edge.budget import MIB, Budget

LARGE = 32 * MIB  # freed bytes that are worth the search for free pages at once
SMALL = MIB  # bytes of bodies that are worth it after a while
EVERY_S = 5.0


class HeapTrim:
    """Notices that memory may have been freed: many bytes at once, or any work for some seconds."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._peak = self._total = 0
        self._at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is worth while to trim now."""
        budget = self._budget
        self._peak = max(self._peak, budget.used)
        freed = self._peak - budget.used >= LARGE
        if not freed and not (self.is_pending and now - self._at >= EVERY_S):
            return False
        self._peak, self._total, self._at = budget.used, budget.total, now
        return True

    @property
    def is_pending(self) -> bool:
        """Whether bodies have arrived since the heap was trimmed."""
        return self._budget.total - self._total >= SMALL


def trim() -> None:
    """Return free pages of the heaps to the system. Other C libraries than glibc are left alone."""
    if os.name == "posix":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
