"""How much memory models may take on the device, how much one will need, and giving it back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sie_server.engine.device import pick_device, pick_dtype
from sie_server.engine.storage.weights import stored_elements
from sie_server.models.checkpoints.reader import read_spec
from sie_server.models.spec import UnsupportedCheckpoint

# of what the device has; the rest is for activations, the document cache and everybody else
CPU_SHARE, CUDA_SHARE = 0.7, 0.8
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LOOKED_AT = 100 * 2**10  # bytes; glibc looks at the top of a heap when more than 64 KiB are freed in it
CGROUPS = Path("/sys/fs/cgroup")


def automatic_budget(device: str) -> int:
    """Bytes for models where the operator names none: a share of the GPU's free memory, or of what we may use."""
    if device != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(CUDA_SHARE * free)
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(CPU_SHARE * min([installed, *cgroup_limits()]))


def cgroup_limits(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Every memory limit this process is under, in bytes: those of containers and services, cgroup v2 and v1."""
    names = ["memory/memory.limit_in_bytes"]
    if own.exists():
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            group = Path(path.lstrip("/"))
            if not controllers:  # v2: a limit of any group above counts as well
                names += [str(part / "memory.max") for part in (group, *group.parents)]
            elif "memory" in controllers.split(","):
                names.append(str("memory" / group / "memory.limit_in_bytes"))
    limits = []
    for name in names:
        try:
            limits.append(int((root / name).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such group in this namespace, or "max"
            continue
    return limits


def needed_bytes(directory: Path, *, device: str, dtype: str, template: str | None) -> int:
    """What a checkpoint will take, from the headers of its files; 0 for a broken one, whose load will say why."""
    try:
        spec = read_spec(directory, template)
        served = torch.float32 if spec.compat else pick_dtype(dtype, pick_device(device))
        return stored_elements(directory) * served.itemsize
    except (UnsupportedCheckpoint, ValueError):
        return 0


@contextmanager
def freeing() -> Iterator[None]:
    """What is dropped in this block goes back to the system at its end; torch and the C library would keep it.

    glibc keeps up to 64 MiB of free memory on top of every thread's heap, which `malloc_trim` does not touch; it is
    returned only when something large is freed in that heap while the limit is low. That is done here for the heap of
    this thread, which is the one that reads checkpoints. Afterwards the limits are those that glibc itself arrives at
    in a process that frees large blocks.
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
            glibc.free(glibc.malloc(LOOKED_AT))
            glibc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
            glibc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = (ctypes.c_void_p,)
    return library
