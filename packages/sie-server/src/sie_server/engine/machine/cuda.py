"""CUDA cards: whether torch can use one and why not, the dtype that is fast on it, and torch's settings for it.

Nothing here has run on a card yet; the tests replace `torch.cuda`.
"""

from __future__ import annotations

import logging
import os
import re
from functools import cache

import torch

from sie_server.errors import cut
from sie_server.panics import first_line

log = logging.getLogger("sie_server.device")
TENSOR_CORES, AMPERE = (7, 0), (8, 0)  # compute capabilities: fast fp16; fast bf16 and FlashAttention
OWN = re.compile(r"(?:sm|compute)_(\d+)")  # of `torch.cuda.get_arch_list`: sm_90, sm_90a, compute_120
BROKEN = "AcceleratorError"  # of torch 2.8 and later; before, a RuntimeError with the same text
LOST = (
    "CUDA error: an illegal memory access",
    "CUDA error: device-side assert",
    "CUDA error: unspecified launch",
    "CUDA error: uncorrectable",
    "CUDA error: the launch timed out",
    "CUDA error: misaligned address",
    "CUDA error: an illegal instruction",
    "CUDA error: hardware stack error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: unknown error",
)


def cuda_problem() -> str | None:
    """Return why torch cannot run models on a CUDA card, with the next step; None: it can."""
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA; install a build with CUDA, or use --device cpu or auto"
    if not torch.cuda.is_available():
        return f"{_no_card()}; use --device cpu or auto to run without it"
    return _unsupported_card()


def _no_card() -> str:
    """Return why torch sees no card: in torch's words if it says so, and with the variable that hides cards."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {cut(visible)!r})"
    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError: there is no driver, or an old one
        return f"torch cannot use a CUDA GPU: {first_line(error).rstrip('.')}{hidden}"
    return f"torch sees no CUDA GPU{hidden}"


def _unsupported_card() -> str | None:
    """Return why this torch has no kernels for the card: one older than all it was built for."""
    capability = torch.cuda.get_device_capability()
    built = [_capability_of(match[1]) for name in torch.cuda.get_arch_list() if (match := OWN.match(name))]
    if not built or capability >= min(built):
        return None
    return (
        f"{torch.cuda.get_device_name()} has compute capability {_written(capability)}, and this torch "
        f"({torch.__version__}) needs {_written(min(built))} or later; install a torch for an older CUDA, "
        "or use --device cpu"
    )


def _capability_of(digits: str) -> tuple[int, int]:
    return int(digits[:-1]), int(digits[-1])


def _written(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def cuda_dtype() -> torch.dtype:
    """Return the fastest dtype of the card: bf16 from Ampere on, fp16 on Volta and Turing, fp32 before."""
    capability = torch.cuda.get_device_capability()
    if capability >= AMPERE:
        return torch.bfloat16
    return torch.float16 if capability >= TENSOR_CORES else torch.float32


@cache
def prepare_cuda() -> None:
    """Set up torch for the card, once, and log the limits of an old one.

    cuDNN's attention, which torch prefers on Hopper, builds a plan for every new shape, and packed batches have a new
    shape each.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    capability = torch.cuda.get_device_capability()
    if capability < AMPERE:
        log.warning(
            "%s has compute capability %s: --dtype auto is %s, and there is no FlashAttention, which needs %s",
            torch.cuda.get_device_name(),
            _written(capability),
            str(cuda_dtype()).removeprefix("torch."),
            _written(AMPERE),
        )


def cuda_lost(error: BaseException) -> bool:
    """Return whether an error of CUDA, unless memory ran out, has made the card unusable for this process.

    CUDA reports such errors once, and every later call fails with the same error.
    See https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html, cudaErrorIllegalAddress and others.
    """
    broken = type(error).__name__ == BROKEN or any(words in str(error) for words in LOST)
    return isinstance(error, RuntimeError) and broken
