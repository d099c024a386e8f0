"""Decoders saved as classifiers: Qwen3-Reranker and mxbai-rerank-v2 are republished in this form.

One linear layer without bias reads the last token of a filled template. A conversion puts the row of the positive
answer, minus that of the negative one, into it, so the logit equals that of the causal checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.classifier import Classifier
from sie_server.models.layers.linear import Linear, Weights
from sie_server.models.spec import BackboneSpec


class ScoreHead:
    """The last token's state → a logit per label, in fp32.

    So does `GenericForSequenceClassification` of transformers. The library reads the last token that is not the padding
    token; `PromptTokenizer` leaves such tokens out.
    """

    readout: Readout = "last"

    def __init__(self, size: int, weights: Weights, labels: int) -> None:
        self._out = Linear.load(weights, "score", labels, size, torch.float32, bias=False)

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from [sequences, hidden] of the last tokens; [sequences, labels] of several."""
        return self._out(hidden.float()).squeeze(1)


def score_head(spec: BackboneSpec, weights: Weights, labels: int = 1) -> Classifier:
    """Load the head `score`."""
    return ScoreHead(spec.hidden_size, weights, labels)
