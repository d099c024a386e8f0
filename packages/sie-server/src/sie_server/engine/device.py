"""The device and dtype to compute in, and the cores of this process."""

from __future__ import annotations

import logging
import math
import os
from functools import cache

import torch

from sie_server.engine.machine.cgroups import cpu_quota
from sie_server.engine.machine.cuda import cuda_dtype, cuda_lost, cuda_problem, prepare_cuda
from sie_server.errors import ONEDNN_FAILED, ConfigError, out_of_memory

log = logging.getLogger("sie_server.device")

INT8 = "int8"
TEAM = 4  # cores of a device thread; a pass gains less from each further one (docs/performance.md)
FEWEST_TO_DIVIDE = 2 * TEAM  # cores
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(requested: str) -> torch.device:
    """Return the requested device; `auto` is the GPU if torch can run models on one.

    Raises:
        ValueError: cuda is requested and torch cannot run models on a GPU.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() and not _unused_card() else "cpu"
    elif requested == "cuda" and (problem := cuda_problem()):
        raise ValueError(f"device 'cuda' was requested, but {problem}")
    if requested == "cuda":
        prepare_cuda()
    return torch.device(requested)


def require_device(requested: str) -> None:
    """Find the device before anything else starts.

    Raises:
        ConfigError: it is not available.
    """
    try:
        pick_device(requested)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@cache
def _unused_card() -> bool:
    """Return whether `auto` leaves a card unused that torch sees; logged once."""
    problem = cuda_problem()
    if problem:
        log.warning("models run on the CPU: %s", problem)
    return problem is not None


def pick_dtype(requested: str, device: torch.device) -> torch.dtype:
    """Return the requested dtype; `auto` is bf16 if the hardware multiplies it fast, else fp16 on a GPU, or fp32.

    With `int8` it is the dtype of everything but the products of the layers, which is that of `auto`.
    """
    if requested not in ("auto", INT8):
        return DTYPES[requested]
    if device.type == "cuda":
        return cuda_dtype()
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


def math_threads(requested: int, device: str) -> int:
    """Return how many threads torch uses for a product on the CPU, given the setting (0: automatic).

    With a GPU that is one: the products run there, and the cores are left to tokenising.
    """
    if requested:
        return requested
    return 1 if pick_device(device).type == "cuda" else usable_cores()


def device_threads(requested: int | str, threads: int, device: str) -> int:
    """Return how many device threads share `threads` math threads, given the setting (`auto`: by their number).

    Raises:
        ConfigError: there are fewer cores or math threads, or a GPU.
    """
    gpu = pick_device(device).type == "cuda"
    if not isinstance(requested, int):
        return 1 if gpu or threads < FEWEST_TO_DIVIDE else threads // TEAM
    if gpu and requested > 1:
        raise ConfigError(
            f"device_threads: {requested} was requested, but a GPU has one device thread, because two forward passes "
            "at once only slow each other down; use 1 or auto, or set device to cpu"
        )
    most = min(threads, usable_cores())
    if requested > most and not gpu:
        limit = f"{most} core" if most == usable_cores() else f"{most} math thread"
        raise ConfigError(
            f"device_threads: {requested} was requested, but this process may use {limit}{'s' * (most > 1)}; use at "
            f"most {most}, or auto"
        )
    return requested


def thread_teams(requested: int | str, threads: int, device: str) -> tuple[int, int]:
    """Return the number of device threads and the math threads of each, given the settings.

    Raises:
        ConfigError: the device is not available, or cannot have that many.
    """
    require_device(device)
    whole = math_threads(threads, device)
    count = device_threads(requested, whole, device)
    return count, whole // count


def use_cpu_threads(count: int) -> None:
    """Set how many threads torch uses for a product called by this thread; 0 means one per usable core.

    Threads that start later take the number of the last call for their own products.
    """
    torch.get_num_threads()  # a thread's first use of torch takes the number of the last call of any thread
    torch.set_num_threads(count or usable_cores())


def release_cached() -> None:
    """Return unused blocks of torch's allocator to the GPU: after a pass that ran out of memory they are fragments."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def thread_spoiled(error: BaseException) -> bool:
    """Return whether an error has made oneDNN unusable for the thread in which it occurred.

    If oneDNN's code generator (Xbyak) cannot map memory for a kernel, it stores the failure in a variable of the
    thread. Every later kernel of this thread then fails too, also when memory is free again; other threads are not
    affected.
    """
    return ONEDNN_FAILED in str(error)


def device_lost(error: BaseException) -> bool:
    """Return whether an error has made the device unusable for this process."""
    return cuda_lost(error) and not out_of_memory(error)
