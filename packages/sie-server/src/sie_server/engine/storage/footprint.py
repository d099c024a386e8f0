"""The memory budget for models, the memory a model will take, and the return of freed memory to the system."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sie_server.engine.device import INT8, pick_device, pick_dtype
from sie_server.engine.machine.cgroups import memory_limits
from sie_server.engine.storage.formats.checkpoint import stored_elements
from sie_server.engine.storage.source import unsupported
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.spec import UnsupportedCheckpoint

log = logging.getLogger("sie_server.memory")
# Shares of the device's memory; the rest is for activations, the document cache and other processes.
CPU_SHARE, CUDA_SHARE = 0.7, 0.8
ASSUMED_MEMORY = 8 * 2**30  # bytes, if the system does not report its memory
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
TRIM_BLOCK = 100 * 2**10  # bytes; glibc trims the top of a heap only when more than 64 KiB are freed in it


def automatic_budget(device: str) -> int:
    """Return the default memory budget in bytes: a share of the GPU's free memory or of the host's usable memory."""
    free = free_gpu_bytes(device)
    if free is not None:
        return int(CUDA_SHARE * free)
    return int(CPU_SHARE * min([installed_memory(), *memory_limits()]))


def free_gpu_bytes(device: str) -> int | None:
    """Return the free bytes of the GPU that `device` (the setting) stands for; None: models run on the CPU."""
    if device == "cpu" or not torch.cuda.is_available() or pick_device(device).type == "cpu":
        return None
    return torch.cuda.mem_get_info()[0]


def installed_memory() -> int:
    """Return the bytes of the machine's memory; `ASSUMED_MEMORY` with a warning if the system does not report it."""
    try:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no sysconf at all, or not these names
        pages, page = -1, -1
    if pages > 0 and page > 0:
        return pages * page
    log.warning(
        "this system does not report its memory; assuming %d GiB. Set --memory-budget-mb",
        ASSUMED_MEMORY // 2**30,
    )
    return ASSUMED_MEMORY


def needed_bytes(
    directory: Path, *, device: str, dtype: str, template: str | None, label: str | int | None = None
) -> int:
    """Return the bytes a checkpoint will take, from its headers; 0 if its weights are broken, which its load reports.

    Raises:
        ModelLoadFailed: its configuration cannot be read.
    """
    try:
        spec = read_spec(directory, template, label=label)
    except UnsupportedCheckpoint as error:
        raise unsupported(directory, error) from error
    try:
        served = torch.float32 if spec.compat else pick_dtype(dtype, pick_device(device))
        saved = _saved(spec.backbone.products or (), served) if dtype == INT8 else 0
        return stored_elements(directory) * served.itemsize - saved
    except (UnsupportedCheckpoint, ValueError, OSError):
        return 0


def _saved(products: Iterable[tuple[int, int]], served: torch.dtype) -> int:
    """Return the bytes by which weights of these shapes are smaller in int8, with a scale per output in fp32."""
    return sum(outputs * ((served.itemsize - 1) * inputs - 4) for outputs, inputs in products)


@contextmanager
def freeing() -> Iterator[None]:
    """Return memory that is freed in this block to the system at its end; torch and glibc would keep it.

    glibc keeps up to 64 MiB of free memory at the top of every thread's heap. `malloc_trim` does not return it; freeing
    a large block in that heap does, while the trim threshold is low. This is done for the heap of the calling thread,
    which is the thread that reads checkpoints. Afterwards the thresholds are those that glibc itself chooses in a
    process that frees large blocks. Other C libraries are left alone.
    """
    glibc = _glibc()
    if glibc:
        glibc.mallopt(M_TRIM_THRESHOLD, 128 * 2**10)
    try:
        yield
        gc.collect()
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if glibc:
            glibc.malloc_trim(0)
            glibc.free(glibc.malloc(TRIM_BLOCK))
            glibc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
            glibc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    return library
