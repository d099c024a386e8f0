"""Listwise rerankers (jina-reranker-v3 and v3.5): a request's documents in one prompt, each read at a token of its own.

The facts are those of the `modeling.py` that both repositories carry (`JinaForRanking`, a Qwen3 decoder without output
matrix); it is never loaded. "Last but not late interaction", Wang et al., 2025, https://arxiv.org/abs/2509.25085.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.families.decoders.decoder import DecoderSpec, read_qwen3
from sie_server.models.layers.linear import Weights
from sie_server.models.spec import BackboneSpec, ListwiseSpec, ModelSpec, UnsupportedCheckpoint

PROJECTED = 512  # width of the vectors that are compared; a constant of the reference, not in config.json
LAYERS = {
    "full_attention": False,
    "sliding_attention": True,
}  # layer_types → looks back no further than a window
# (query, document) tokens, the defaults of the reference's `rerank`: of v3, and of v3.5, whose layers have windows
LENGTHS, LENGTHS_WITH_WINDOWS = (512, 2048), (1024, 8192)


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


def read_listwise(architecture: str, backbone: BackboneSpec, block_length: int) -> ModelSpec:
    """The spec of a listwise reranker; `block_length` (tokens) is what documents and query of a prompt may take."""
    assert isinstance(backbone, DecoderSpec)  # what read_jina_ranking made
    query, document = LENGTHS_WITH_WINDOWS if any(backbone.windows) else LENGTHS
    head = ListwiseSpec(query_length=min(query, block_length), block_length=block_length)
    return ModelSpec(architecture, backbone, head, min(document, block_length))


class Projector:
    """Hidden state of a read-out token → the vector that is compared; two matrices without bias, in fp32."""

    def __init__(self, hidden_size: int, weights: Weights) -> None:
        part, inner = weights.at("projector"), hidden_size // 2
        self.inner = part.take("0.weight", inner, hidden_size, dtype=torch.float32)
        self.outer = part.take("2.weight", PROJECTED, inner, dtype=torch.float32)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] → [rows, PROJECTED] fp32."""
        return F.linear(F.relu(F.linear(hidden.float(), self.inner)), self.outer)
