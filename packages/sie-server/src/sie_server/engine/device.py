"""The device and dtype to compute in, and the cores of this process."""

from __future__ import annotations

import math
import os

import torch

from sie_server.engine.cgroups import cpu_quota
from sie_server.errors import ONEDNN_FAILED

INT8 = "int8"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(requested: str) -> torch.device:
    """Return the requested device; `auto` is the GPU if torch sees one.

    Raises:
        ValueError: cuda is requested and not available.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was requested, but torch sees no CUDA GPU; use --device cpu or auto")
    return torch.device(requested)


def pick_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Return the requested dtype; `auto` is bf16 if the hardware multiplies it fast, else fp32.

    With `int8` it is the dtype of everything but the products of the layers, which is that of `auto`.
    """
    if requested not in ("auto", INT8):
        return DTYPES[requested]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_has_fast_bf16() else torch.float32


def _cpu_has_fast_bf16() -> bool:
    # these probes are private to torch; without them the dtype is fp32, which is correct but slower
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def usable_cores() -> int:
    """Return how many cores this process may use: those of its affinity, or fewer if a container limits its CPU time.

    A limit of 2.5 cores counts as 3, as two threads could not use it up. Outside Linux before Python 3.13, all cores of
    the machine count.
    """
    quota = cpu_quota()
    cores = _cores_of_affinity()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _cores_of_affinity() -> int:
    process_cpu_count = getattr(os, "process_cpu_count", None)  # Python 3.13; it does not read quotas
    if process_cpu_count is not None:
        return process_cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    if affinity is not None:
        return len(affinity(0))
    return os.cpu_count() or 1


def use_cpu_threads(count: int) -> None:
    """Set how many threads torch uses for a product; 0 means one per usable core."""
    torch.set_num_threads(count or usable_cores())


def thread_spoiled(error: BaseException) -> bool:
    """Return whether an error has made oneDNN unusable for the thread in which it occurred.

    If oneDNN's code generator (Xbyak) cannot map memory for a kernel, it stores the failure in a variable of the
    thread. Every later kernel of this thread then fails too, also when memory is free again; other threads are not
    affected.
    """
    return ONEDNN_FAILED in str(error)


def device_lost(error: BaseException) -> bool:
    """Return whether an error has made the device unusable for this process.

    CUDA reports such errors once, and every later call fails with the same error.
    See https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, cudaErrorIllegalAddress and others.
    """
    words = (
        "CUDA error: an illegal memory access",
        "CUDA error: device-side assert",
        "CUDA error: unspecified launch",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
