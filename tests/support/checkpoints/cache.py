"""A cache of random checkpoints, shared by all workers and by later runs with the same makers."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec

from sie_server import templates

P = ParamSpec("P")
_root: Path | None = None


def use(directory: Path) -> None:
    """Keep checkpoints below `directory`, and delete those of other makers."""
    global _root
    _root = directory / _makers()
    _root.mkdir(exist_ok=True)
    for other in directory.iterdir():
        if other != _root:
            shutil.rmtree(other, ignore_errors=True)


def cached(make: Callable[Concatenate[Path, P], Path]) -> Callable[Concatenate[Path, P], Path]:
    """Cache a maker: `make` runs once per set of arguments, which alone must determine the directory's content.

    Callers receive copies, which they may edit.
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
        import torch  # imported late, because the process that distributes the tests does not need it

        torch.manual_seed(0)  # equal random state after building and copying
        return directory

    return copy


def _build(kept: Path, make: Callable[[Path], object]) -> None:
    """Build in a temporary directory and rename it; if two workers do so at the same time, the first one wins."""
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
    """Return a hash of everything that determines the bytes: sources of the makers and versions of the libraries."""
    content = hashlib.sha256()
    makers = Path(__file__).parents[1].rglob("*.py")
    prompts = Path(templates.__file__).parent.rglob("*.yaml")  # some makers train tokenizers on them
    for path in sorted([*makers, *prompts]):
        content.update(path.read_bytes())
    for name in ("numpy", "torch", "transformers", "tokenizers", "safetensors", "sentence-transformers"):
        content.update(importlib.metadata.version(name).encode())
    return content.hexdigest()[:16]
