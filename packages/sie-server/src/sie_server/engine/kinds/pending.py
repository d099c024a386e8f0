"""Results of a pass that are still on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Pending:
    """The tensors of which a pass's results are made, and the function that makes them.

    Reading a value of a tensor on a GPU waits until all work before it is done. Readers therefore name the tensors that
    they need on the host, all are copied at once, and `finish` gets them as arrays.
    """

    tensors: Sequence[Tensor]
    finish: Callable[[list[Any]], list[Any]]  # arrays, in the order of `tensors` → one result per work


class Outputs:
    """Collects the tensors of a `Pending`."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> int:
        """Return the place of the tensor among the arrays."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1
