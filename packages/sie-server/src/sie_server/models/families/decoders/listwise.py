"""Listwise rerankers (jina-reranker-v3 and v3.5): one prompt holds several documents, each read at its own token.

The source is the `modeling.py` of both repositories (`JinaForRanking`, a Qwen3 decoder without output matrix), which is
never loaded. "Last but not late interaction", Wang et al., 2025, https://arxiv.org/abs/2509.25085.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sie_server.models.families.decoders.decoder import DecoderSpec, read_qwen3
from sie_server.models.spec import UnsupportedCheckpoint

# a name in `layer_types` → True where the layer attends within a window
LAYERS = {"full_attention": False, "sliding_attention": True}


def read_jina_ranking(config: dict[str, Any]) -> DecoderSpec:
    """Read the configuration: Qwen3 with windows per layer.

    In layers of type `sliding_attention` a token attends to `sliding_window` tokens, itself included.
    """
    # as a field of Qwen3 the window would limit the length of sequences
    spec = read_qwen3(config | {"use_sliding_window": False})
    window = config["sliding_window"] if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28) if window else spec.num_layers  # the default of transformers
    types = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(spec.num_layers)
    ]
    if unknown := sorted(set(types) - LAYERS.keys()):
        raise UnsupportedCheckpoint(f"layer_types names {unknown[0]!r}; supported: {', '.join(LAYERS)}")
    if len(types) != spec.num_layers:
        raise UnsupportedCheckpoint(
            f"layer_types has {len(types)} entries; expected {spec.num_layers}, one for each layer"
        )
    if "sliding_attention" in types and not window:
        raise UnsupportedCheckpoint(
            "layer_types names sliding_attention, but use_sliding_window or sliding_window is not set"
        )
    return replace(spec, windows=tuple(window if LAYERS[kind] else None for kind in types))
