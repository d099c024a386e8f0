"""Return the memory of large bodies to the system. glibc keeps it, because bodies arrive in many small parts."""

from __future__ import annotations

import ctypes
import os

from sie_server.api.edge.budget import MIB, Budget

LARGE = 32 * MIB  # freed bytes that are worth the search for free pages


class HeapTrim:
    """Notices that many bytes of the budget have been released."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._peak = 0

    def is_due(self) -> bool:
        """Whether `LARGE` bytes have been released since the last call that returned True."""
        used = self._budget.used
        if self._peak - used < LARGE:
            self._peak = max(self._peak, used)
            return False
        self._peak = used
        return True


def trim() -> None:
    """Return free pages of the heaps to the system. Other C libraries than glibc are left alone."""
    if os.name == "posix":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
