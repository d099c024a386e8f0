"""Panics of native libraries, which Python sees as exceptions that are no `Exception`.

The tokenizers library (Rust) panics for some files and for some texts, for example when a regular expression of a
`tokenizer.json` needs too many steps. Python raises `pyo3_runtime.PanicException`, a direct subclass of BaseException,
which passes every `except Exception` on its way. Work on foreign files or texts runs through `catching_panics`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
OF_PYTHON = (Exception, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


class NativePanic(Exception):
    """A native library has panicked; its state is as before, and only the work that it did is lost."""


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic, not an exception of Python or of the server, or a request to stop."""
    return not isinstance(error, OF_PYTHON) and not type(error).__module__.startswith("sie_server.")


def catching_panics(work: Callable[[], Result]) -> Callable[[], Result]:
    """Return `work` with panics turned into `NativePanic`, which `except Exception` catches."""

    def caught() -> Result:
        try:
            return work()
        except BaseException as error:
            if not is_panic(error):
                raise
            raise NativePanic(f"a native library panicked: {first_line(error)}") from None

    return caught


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
