"""Run models on a CPU in the layout of a GPU: no alignment, varlen attention by its reference implementation.

`SIE_TEST_ATTENTION=varlen pytest tests/parity` does so for all models of a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

ALL = os.environ.get("SIE_TEST_ATTENTION") == "varlen"


def install() -> None:
    """Choose the attention of a GPU for every model that is loaded from now on."""
    import torch

    from sie_server.engine import forward
    from sie_server.models.layers.attention.choice import choose

    def as_on_a_gpu(needs: Any, *_: Any) -> Any:
        # the tests' heads are narrower than a kernel takes
        wide = replace(needs, head_dim=64)
        return choose(wide, torch.device("cuda"), torch.bfloat16, capability=(9, 0))

    forward.choose = as_on_a_gpu  # type: ignore[assignment]


@contextmanager
def gpu_layout() -> Iterator[None]:
    """As `install`, for the models that are loaded inside the context."""
    from sie_server.engine import forward

    before = forward.choose
    install()
    try:
        yield
    finally:
        forward.choose = before
