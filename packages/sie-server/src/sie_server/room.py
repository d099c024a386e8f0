"""Memory for native libraries and for threads: tested first, because without it some end or stop the process.

The tokenizers library (Rust) aborts if an allocation fails, and oneDNN (of torch 2.13) writes to the address that it
did not get. Before such a call, a block of the expected size is allocated and freed at once in the same thread, so in
the same heap of the C library: it takes about a microsecond and touches no memory. If it fails, one request fails.
Other threads may take the memory in between, so this makes such an end rare, not impossible.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

CANNOT_START = "can't start new thread"
STACK_BYTES = 8 << 20  # of a thread, the default of Linux
SPARE_BYTES = 16 << 20
MARGIN = 2 << 20  # bytes beyond what is known, for the library's own small objects


def check_room(expected: int) -> None:
    """Raise MemoryError unless `expected` bytes and `MARGIN` can be allocated in one block."""
    library = _allocator()
    if library is None:
        return
    block = library.malloc(expected + MARGIN)
    if not block:
        raise MemoryError(f"no memory for {(expected + MARGIN) >> 20} MiB")
    library.free(block)


@cache
def _allocator() -> ctypes.PyDLL | None:
    """Return the C library, called with the interpreter's lock held, as releasing it takes longer than the call."""
    if os.name != "posix":
        return None
    library = ctypes.PyDLL(None)
    library.malloc.argtypes, library.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    library.free.argtypes, library.free.restype = (ctypes.c_void_p,), None
    return library


def room_for_threads(count: int) -> bool:
    """Return whether memory for the stacks of `count` threads can be mapped.

    `Thread.start` waits for the new thread, without a limit also if that one fails in its first steps because memory
    is missing. OpenMP ends the process if it cannot start a thread.
    """
    try:
        mmap.mmap(-1, count * STACK_BYTES + SPARE_BYTES).close()
    except (OSError, MemoryError):
        return False
    return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        MemoryError: there is no memory for it.
    """
    if not room_for_threads(1):
        raise MemoryError(CANNOT_START)
    try:
        thread.start()
    except RuntimeError as error:  # can't start new thread
        raise MemoryError(CANNOT_START) from error


class Threads(ThreadPoolExecutor):
    """A pool that goes on with fewer threads if memory for another one is missing."""

    def submit(self, *args: Any, **named: Any) -> Future[Any]:
        """As the base class.

        Raises:
            MemoryError: there is no thread, and no memory for the first one.
        """
        if not self._threads and not room_for_threads(1):
            raise MemoryError(CANNOT_START)  # the base class would queue the work before it fails
        return super().submit(*args, **named)

    def _adjust_thread_count(self) -> None:
        """Called by `submit` for every piece of work. The existing threads take it if no other can be started."""
        if self._idle_semaphore.acquire(timeout=0):
            return
        is_full = len(self._threads) >= self._max_workers
        if is_full or (self._threads and not room_for_threads(1)):
            return
        super()._adjust_thread_count()
