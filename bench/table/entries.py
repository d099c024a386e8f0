"""The contenders: their labels, the formats that their process needs, and the reasons why one cannot take part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from bench.rivals import onnx_runtime, openvino

from sie_server.engine.device import pick_dtype
from sie_server.models.layers.int8.machine import problem

BATCHES = (8, 16, 32)
DEFAULT_BATCH = 32  # of sentence-transformers
OURS = "SIE bf16"


@dataclass(frozen=True)
class Entry:
    """A way of scoring documents. `converter` names the rival whose files it needs; `file` is one of them."""

    label: str
    library: str  # "ours", "sentence-transformers", "openvino", "onnx_runtime"
    dtype: str = ""
    converter: str = ""
    file: str = ""
    batches: tuple[int, ...] = BATCHES
    missing: Callable[[], str] = lambda: ""  # "" or the reason why this machine cannot run it


def _needs(rival: object) -> Callable[[], str]:
    return lambda: "" if rival.installed() else f"not installed: {rival.NEEDS}"  # type: ignore[attr-defined]


def _no_bf16() -> str:
    fast = pick_dtype("auto", torch.device("cpu")) is torch.bfloat16
    return "" if fast else "this CPU has no bf16 products"


def _no_int8() -> str:
    return problem(torch.device("cpu")) or ""


REFERENCE = "sentence-transformers, default"
EXACT = "SIE fp32"  # the reference without the other one
ENTRIES = (
    Entry(OURS, "ours", "bfloat16", missing=_no_bf16),
    Entry("SIE int8", "ours", "int8", missing=_no_int8),
    Entry(EXACT, "ours", "float32"),
    Entry(REFERENCE, "sentence-transformers", "float32", batches=(DEFAULT_BATCH,)),
    Entry("sentence-transformers, best", "sentence-transformers", "bfloat16", missing=_no_bf16),
    *(
        Entry(f"OpenVINO {label}", "openvino", converter="openvino", file=name, missing=_needs(openvino))
        for name, label in openvino.LABELS.items()
    ),
    *(
        Entry(
            f"ONNX Runtime {label}",
            "onnx_runtime",
            converter="onnx_runtime",
            file=name,
            missing=_needs(onnx_runtime),
        )
        for name, label in onnx_runtime.LABELS.items()
    ),
)


def chosen(patterns: Iterable[str]) -> list[Entry]:
    """Return the contenders whose labels match one of the patterns, such as `SIE*`.

    Raises:
        ValueError: a pattern matches none.
    """
    found = []
    for pattern in patterns:
        matching = [entry for entry in ENTRIES if fnmatchcase(entry.label, pattern)]
        if not matching:
            labels = ", ".join(entry.label for entry in ENTRIES)
            raise ValueError(f"{pattern!r} matches no contender; they are {labels}")
        found += matching
    return [entry for entry in ENTRIES if entry in found]
