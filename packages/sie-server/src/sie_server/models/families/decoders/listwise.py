"""Listwise rerankers (jina-reranker-v3 and v3.5): a request's documents in one prompt, each read at a token of its own.

The facts are those of the `modeling.py` that both repositories carry (`JinaForRanking`, a Qwen3 decoder without output
matrix); it is never loaded. "Last but not late interaction", Wang et al., 2025, https://arxiv.org/abs/2509.25085.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sie_server.models.families.decoders.decoder import DecoderSpec, read_qwen3
from sie_server.models.spec import UnsupportedCheckpoint

# a name in `layer_types` → True where the layer looks back no further than a window
LAYERS = {"full_attention": False, "sliding_attention": True}


def read_jina_ranking(config: dict[str, Any]) -> DecoderSpec:
    """Qwen3; layers that `layer_types` calls `sliding_attention` see `sliding_window` tokens, their own included."""
    spec = read_qwen3(config | {"use_sliding_window": False})  # its window would limit whole sequences
    window = config["sliding_window"] if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28) if window else spec.num_layers  # the default of transformers
    types = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(spec.num_layers)
    ]
    if unknown := sorted(set(types) - LAYERS.keys()):
        raise UnsupportedCheckpoint(f"layer_types names {unknown[0]!r}; served: {', '.join(LAYERS)}")
    if len(types) != spec.num_layers:
        raise UnsupportedCheckpoint(f"layer_types has {len(types)} entries for {spec.num_layers} layers")
    if "sliding_attention" in types and not window:
        raise UnsupportedCheckpoint(
            "layer_types names sliding_attention, and use_sliding_window or sliding_window is not set"
        )
    return replace(spec, windows=tuple(window if LAYERS[kind] else None for kind in types))
