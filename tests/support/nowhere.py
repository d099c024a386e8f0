"""Run a model on torch's `meta` device, whose tensors have shapes and no values: reading one raises.

So a pass that runs here reads nothing back from a device, and it can wait for none. Copies to it are counted.
"""

from __future__ import annotations

from collections import Counter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sie_server.engine.engine import Engine

META = torch.device("meta")


def move(engine: Engine) -> None:
    """Move the tensors of a model to the device without values."""
    forward = engine._forward
    moved: set[int] = set()
    for part in (forward.backbone, forward.reader):
        _move(part, moved)
    forward._device = META


def _move(part: Any, moved: set[int]) -> Any:
    """Return `part` with its tensors, and those of the objects that it refers to, on `META`."""
    if isinstance(part, Tensor):
        return part.to(META)
    if isinstance(part, dict):
        for key in part:
            part[key] = _move(part[key], moved)
    elif isinstance(part, list):
        part[:] = [_move(one, moved) for one in part]
    elif isinstance(part, tuple) and any(isinstance(one, Tensor) for one in part):
        return tuple(_move(one, moved) for one in part)
    elif isinstance(part, FunctionType):
        for cell in part.__closure__ or ():
            cell.cell_contents = _move(cell.cell_contents, moved)
    elif type(part).__module__.startswith("sie_server.") and id(part) not in moved:
        moved.add(id(part))
        for name, value in list(getattr(part, "__dict__", {}).items()):
            changed = _move(value, moved)
            if changed is not value:
                object.__setattr__(part, name, changed)
    return part


class Copies(TorchDispatchMode):
    """Counts the operations that copy to the device, and those that wait for it, by name."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Copies:
        self._tensor = torch.tensor
        torch.tensor = self._built  # type: ignore[assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def _built(self, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is not None and torch.device(device) == META:  # dispatch does not show it
            self.found["copy to the device"] += 1
        return self._tensor(*args, device=device, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        # a number in a tensor of the host needs no copy
        sources = {
            one.device.type for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.ndim
        }
        into = {one.device.type for one in tree_leaves(result) if isinstance(one, Tensor)}
        if "cpu" in sources and "meta" in sources | into:
            self.found["copy to the device"] += 1
        if name in self.WAITING:
            self.found[name] += 1
        return result
