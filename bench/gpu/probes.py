"""Facts of the machine and of its torch on which the engine relies: versions, schemas, compilers, the card."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
import shutil
from collections.abc import Callable
from typing import Any

import torch

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "sentence-transformers", "numpy"),
    *("msgspec", "starlette", "uvicorn", "swagger-ui-bundle"),
)
OPERATORS = ("_flash_attention_forward", "_varlen_attn")
SWITCHES = ("enable_cudnn_sdp", "enable_flash_sdp")


def probes(device: str) -> dict[str, Any]:
    """Return the facts by name. A probe that fails is reported with its error."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "compilers": {name: shutil.which(name) for name in ("cc", "gcc", "clang", "nvcc", "ptxas")},
        "operators": {name: _safe(lambda name=name: _schema(name)) for name in OPERATORS},
        "varlen_attn": _safe(_varlen),
        "AcceleratorError": hasattr(torch, "AcceleratorError"),
        "switches": {name: hasattr(torch.backends.cuda, name) for name in SWITCHES},
        "math threads": torch.get_num_threads(),
    }
    if device == "cuda":
        found["card"] = _safe(_card)
        found["kernel of varlen"] = _safe(_kernel)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _safe(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _schema(name: str) -> str | None:
    operator = getattr(torch.ops.aten, name, None)
    return None if operator is None else str(operator.default._schema)


def _varlen() -> str:
    from torch.nn.attention import varlen

    return str(inspect.signature(varlen.varlen_attn))


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "CUDA of torch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "built for": torch.cuda.get_arch_list(),
        "cuDNN attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def _kernel() -> str:
    from sie_server.models.layers.attention import flash

    device = torch.device("cuda")
    return f"{getattr(flash.kernel(), '__name__', None)}, works: {flash.works_on(device)}"
