"""The library of sie-kernels for tests: the installed one, or one built here with the machine's compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from sie_server.models.layers.compiled import attention, library, products

PACKAGE = Path(__file__).parents[2] / "packages" / "sie-kernels"


def build(directory: Path) -> Path:
    """Compile the library with the flags of its package; skip the test without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("this machine has no gcc, which builds sie-kernels")
    build = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    hook = build["targets"]["wheel"]["hooks"]["custom"]
    flags, built = hook["flags"], directory / "library.so"
    sources = [str(PACKAGE / source) for source in hook["sources"]]
    subprocess.run(
        [compiler, *flags, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", built, *sources],
        check=True,
    )
    return built


def forget() -> None:
    """Let the next use look for the library and check it again."""
    for each in (library.library, attention.usable, products.usable):
        each.cache_clear()


@contextmanager
def installed(path: Path | None) -> Iterator[None]:
    """Let the server find the library at `path` as that of the package, or no package with None."""
    before = sys.modules.get("sie_kernels")
    # an entry of None makes the import fail
    sys.modules["sie_kernels"] = None if path is None else SimpleNamespace(path=lambda: path)  # type: ignore[assignment]
    forget()
    try:
        yield
    finally:
        if before is None:
            del sys.modules["sie_kernels"]
        else:
            sys.modules["sie_kernels"] = before
        forget()


def find(directory: Path) -> Path:
    """Return the installed library, or build one in `directory`."""
    if find_spec("sie_kernels"):
        import sie_kernels

        if found := sie_kernels.path():
            return found
    return build(directory)
