"""The compiled library of sie-server, as a path. It is loaded with ctypes after torch, whose OpenMP library it uses."""

from __future__ import annotations

from pathlib import Path


def path() -> Path | None:
    """Return the path of the compiled library; None if the package was not built."""
    library = Path(__file__).with_name("_library.so")
    return library if library.exists() else None
