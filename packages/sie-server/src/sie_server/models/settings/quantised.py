"""Quantised checkpoints, which are refused by the name of their method: their numbers need its own kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sie_server.errors import cut
from sie_server.models.spec import UnsupportedCheckpoint

# the ends of tensor names that only a method writes
SIGNS = {
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(SCB|weight_format)$|\.(quant_map|nested_absmax|absmax)$|\.quant_state\.": "bitsandbytes",
    r"\.(weight_packed|weight_scale|weight_zero_point|input_scale|weight_shape)$": "compressed-tensors",
    r"\.weight_scale_inv$": "fp8",
    r"\.(_data|_scale|_zero_point|qdata)$": "quanto or torchao",
}
ADVICE = "which is not served; take the unquantised checkpoint of the same model"


def check_unquantised(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedCheckpoint if a configuration names a quantisation (`quantization_config`)."""
    parts = [config, *(config.get(key) for key in ("text_config", "llm_config"))]
    for part in parts:
        if not isinstance(part, Mapping):
            continue
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, Mapping) and found:
            raise UnsupportedCheckpoint(
                f"config.json: the checkpoint is quantised with {_method(found)}, {ADVICE}"
            )


def _method(found: Mapping[str, Any]) -> str:
    method = found.get("quant_method") or found.get("format") or found.get("quant_type")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    bits = found.get("bits") or found.get("w_bit")
    bits = bits or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return cut(str(method or "an unnamed method")) + (f" ({bits} bits)" if isinstance(bits, int) else "")


def quantised(names: Iterable[str]) -> str | None:
    """Return the quantisation that the names of tensors show, as a sentence; None: none."""
    for name in names:
        for sign, method in SIGNS.items():
            if re.search(sign, name):
                return f"{cut(name, 200)!r} shows that the checkpoint is quantised ({method}), {ADVICE}"
    return None
