"""A cache of the random checkpoints: each is built once, for all workers and for later runs."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

P = ParamSpec("P")
_root: Path | None = None


def use(directory: Path) -> None:
    """Keep checkpoints below `directory`, and delete those that other versions of the makers built."""
    global _root
    _root = directory / _makers()
    _root.mkdir(exist_ok=True)
    for other in directory.iterdir():
        if other != _root:
            shutil.rmtree(other, ignore_errors=True)


def cached(make: Callable[Concatenate[Path, P], Path]) -> Callable[Concatenate[Path, P], Path]:
    """Run `make`, which fills a directory from nothing but its arguments, once for each set of arguments.

    Callers get copies, which they may edit.
    """

    @functools.wraps(make)
    def copy(directory: Path, *args: P.args, **kwargs: P.kwargs) -> Path:
        if _root is None:
            make(directory, *args, **kwargs)
        else:
            what = f"{make.__module__}.{make.__name__} {args!r} {sorted(kwargs.items())!r}"
            assert " at 0x" not in what, f"arguments without a name of their own: {what}"
            kept = _root / hashlib.sha256(what.encode()).hexdigest()[:24]
            if not kept.exists():
                _build(kept, lambda to: make(to, *args, **kwargs))
            shutil.copytree(kept, directory, dirs_exist_ok=True)
        import torch  # imported late, as the process that distributes the tests does not need it

        torch.manual_seed(0)  # the same state whether the checkpoint was built or copied
        return directory

    return copy


def _build(kept: Path, make: Callable[[Path], object]) -> None:
    """Build next to `kept` and rename; if two workers build at the same time, the first one wins."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".building-") as folder:
        made = Path(folder) / "checkpoint"
        make(made)
        try:
            made.rename(kept)
        except OSError:
            if not kept.exists():
                raise


@functools.cache
def _makers() -> str:
    """Return a hash of the sources of the makers and the versions of the libraries."""
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        content.update(path.read_bytes())
    for name in ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers"):
        content.update(importlib.metadata.version(name).encode())
    return content.hexdigest()[:16]
