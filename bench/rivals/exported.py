"""The model as converters need it: positional inputs, logits alone, and the loop around the converted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.contenders import Contender, Logits, padded_batches
from bench.workload import QUERY
from torch import nn

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Named(nn.Module):
    """The model with positional inputs."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def load(directory: Path, attention: str) -> tuple[Named, dict[str, torch.Tensor]]:
    """Return the model in fp32 and two padded pairs as example inputs, [2, tokens] each."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention
    )
    model.config.use_cache = False  # a decoder would return its keys and values
    example = tokenizer([QUERY] * 2, ["one", "two three"], return_tensors="pt", padding=True)
    inputs = {name: example[name] for name in INPUTS if name in example}
    return Named(model, list(inputs)).eval(), inputs


Run = Callable[[dict[str, Any]], Any]  # arrays [batch, tokens] → logits [batch, 1]


def score(run: Run, tokenizer: Any, documents: list[str], batch: int) -> Logits:
    """Score all documents in batches, sorted by length."""
    logits = np.empty(len(documents))
    for part, padded in padded_batches(tokenizer, documents, batch, "np"):
        logits[part] = run(dict(padded))[:, 0]
    return logits


def contender(name: str, run: Run, directory: Path, documents: list[str], batch: int) -> Contender:
    """Return a contender that scores these documents."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Contender(f"{name} sorted, batch {batch}", lambda: score(run, tokenizer, documents, batch))
