"""The compiled library: opening it, and the functions that this machine can run."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("sie_server.kernels")
VERSION = 1  # of the library's interface


@cache
def library() -> ctypes.CDLL | None:
    """Return the library of `sie-kernels`; None if it is not installed, not built or of another version."""
    try:
        path = import_module("sie_kernels").path()
    except ImportError:
        return None
    if path is None:
        log.warning("the package sie-kernels is installed without its library; install it from a wheel")
        return None
    try:
        found = ctypes.CDLL(str(path))  # releases the interpreter's lock during calls
        version = found.sie_kernels_version()
    except (OSError, AttributeError) as error:
        log.warning("the library of sie-kernels cannot be used: %s", error)
        return None
    if version != VERSION:
        log.warning(
            "the library of sie-kernels has version %s, this server needs %s; install the one of this release",
            version,
            VERSION,
        )
        return None
    if not shares_threads(found):
        log.warning(
            "sie-kernels is not used, because torch has an OpenMP library of its own, and the threads of two would "
            "compete for the cores"
        )
        return None
    return found


def shares_threads(found: ctypes.CDLL) -> bool:
    """Return whether the library calls the OpenMP functions that torch calls."""
    name = "omp_get_max_threads"
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        # symbols are looked up in a library and those that it needs
        both = [ctypes.cast(getattr(each, name), ctypes.c_void_p).value for each in (found, torchs)]
    except (OSError, AttributeError):
        return False
    return both[0] == both[1]


def has_instructions(*names: str) -> bool:
    """Return whether this CPU has all these instruction sets."""
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return all(capabilities.get(name) for name in names)


def passes(name: str, compare: Callable[[], str | None]) -> bool:
    """Return whether a function computes what it should; `compare` returns what is wrong. The result is logged."""
    try:
        wrong = compare()
    except MemoryError as error:
        wrong = str(error)
    if wrong:
        log.warning(
            "sie-kernels: %s is not used, because %s. Please report this with your versions of torch (%s) and "
            "sie-kernels",
            name,
            wrong,
            torch.__version__,
        )
    else:
        log.info("sie-kernels: %s is used", name)
    return not wrong


def finish(status: int) -> None:
    """Raise MemoryError if a function had no memory for its buffers."""
    if status:
        raise MemoryError("no memory for the buffers of sie-kernels")
