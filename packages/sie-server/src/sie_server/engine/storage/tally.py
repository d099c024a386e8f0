"""How far a download or a load is, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Tally:
    """Bytes of the files that are here, or of the tensors taken so far; may be read from another thread."""

    nbytes: int = 0
    total: int | None = None  # once it is known
    before: int = 0  # that were here already

    def add(self, tensor: Tensor) -> Tensor:
        self.nbytes += tensor.nbytes
        return tensor
