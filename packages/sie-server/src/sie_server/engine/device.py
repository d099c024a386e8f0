"""Which device and number format to compute in."""

from __future__ import annotations

import os

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """`auto` takes the GPU when there is one.

    Raises:
        ValueError: cuda was asked for and is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no CUDA GPU; use --device cpu or auto")
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` takes bf16 where the hardware multiplies it fast, else fp32."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_has_fast_bf16() else torch.float32


def _cpu_has_fast_bf16() -> bool:
    # torch keeps these probes private; a version without them computes in fp32, which is right, only slower
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def use_cpu_threads(count: int) -> None:
    """Threads of one product; `count` 0 means one per core this process may use."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))


def out_of_memory(error: BaseException) -> bool:
    """True when a forward pass or a load failed for want of memory."""
    # torch's, the system's, and cuBLAS's, which torch passes on as a plain RuntimeError
    words = ("can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(w in str(error) for w in words)
