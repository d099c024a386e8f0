"""The head of the listwise rerankers jina-reranker-v3 and v3.5: hidden states → the vectors that are compared.

It follows the `modeling.py` of both repositories (`JinaForRanking`), which is never loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.layers.linear import Weights

PROJECTED = 512  # width of the vectors that are compared; a constant of the reference, not in config.json


class Projector:
    """Linear → ReLU → linear without biases: hidden states of read-out tokens → the vectors that are compared."""

    def __init__(self, hidden_size: int, weights: Weights) -> None:
        part, inner = weights.at("projector"), hidden_size // 2
        self.inner = part.take("0.weight", inner, hidden_size, dtype=torch.float32)
        self.outer = part.take("2.weight", PROJECTED, inner, dtype=torch.float32)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return [rows, PROJECTED] fp32 from [rows, hidden]."""
        return F.linear(F.relu(F.linear(hidden.float(), self.inner)), self.outer)
