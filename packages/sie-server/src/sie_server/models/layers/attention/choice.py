"""The decision which attention serves a model on a device: varlen, or dense blocks.

docs/attention.md lists the result for every architecture; a test compares the page with this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sie_server.models.layers.attention import flash
from sie_server.models.spec import AttentionNeeds

CPU_ALIGN = 16  # rows of a slot; see models.batch
GPU_ALIGN = 64  # fewer groups, because each one is a launch of several kernels
LARGEST_HEAD = 256
OLDEST = (8, 0)  # compute capability


@dataclass(frozen=True)
class Choice:
    """How the attention of a model is computed, and the reason."""

    kind: Literal["varlen", "dense"]
    align: (
        int  # slots are rounded up to a multiple of this number of rows; 1: a sequence has only its own rows
    )
    why: str


def choose(
    needs: AttentionNeeds,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int] | None = None,
) -> Choice:
    """Return the attention for a model; `capability` is that of the GPU, None: ask the driver."""
    if device.type != "cuda":
        return Choice("dense", CPU_ALIGN, "dense blocks are the fastest on a CPU")
    if needs.dense:
        return _dense(f"no varlen kernel computes {needs.dense}")
    if dtype not in (torch.float16, torch.bfloat16):
        return _dense("the varlen kernel computes in fp16 and bf16 only")
    if needs.head_dim > LARGEST_HEAD or needs.head_dim % 8:
        return _dense(
            f"heads have {needs.head_dim} dimensions; the varlen kernel takes multiples of 8 up to {LARGEST_HEAD}"
        )
    asked = capability is None
    capability = torch.cuda.get_device_capability(device) if capability is None else capability
    if capability < OLDEST:
        return _dense(
            f"the GPU has compute capability {capability[0]}.{capability[1]}; the varlen kernel needs "
            f"{OLDEST[0]}.{OLDEST[1]}"
        )
    if not (flash.works_on(device) if asked else flash.kernel()):
        return _dense("this version of torch has no varlen kernel that works")
    return Choice("varlen", 1, "FlashAttention 2 reads sequences at their own lengths")


def _dense(why: str) -> Choice:
    return Choice("dense", GPU_ALIGN, why)
