"""OpenVINO as a contender of `cross_encoders`: bf16, and int8 by NNCF's quantisation after training."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.contenders import Contender, Logits
from bench.workload import QUERY
from torch import nn

CALIBRATION = 64  # documents whose activations NNCF reads
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def installed() -> bool:
    """Return whether OpenVINO and NNCF are installed; they are no requirement of the benchmarks."""
    return find_spec("openvino") is not None and find_spec("nncf") is not None


def contenders(directory: Path, documents: list[str], batch: int) -> list[Contender]:
    """Return OpenVINO in bf16 and in int8, with documents sorted by length and padded in batches."""
    import openvino as ov
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = _converted(directory, tokenizer)
    rounded = _rounded(model, tokenizer, documents)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    found = []
    for name, each, hint in (("bf16", model, "bf16"), ("int8 (NNCF)", rounded, "bf16")):
        run = ov.Core().compile_model(each, "CPU", {**options, "INFERENCE_PRECISION_HINT": hint})
        found.append(
            Contender(f"OpenVINO {name} sorted, batch {batch}", _scorer(run, tokenizer, documents, batch))
        )
    return found


class _Named(nn.Module):
    """The model with positional inputs, which the conversion needs."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def _converted(directory: Path, tokenizer: Any) -> Any:
    import openvino as ov
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="sdpa").eval()
    example = tokenizer([QUERY] * 2, ["one", "two"], return_tensors="pt", padding=True)
    names = [name for name in INPUTS if name in example]
    converted = ov.convert_model(_Named(model, names), example_input=tuple(example[name] for name in names))
    for given, name in zip(converted.inputs, names, strict=True):
        given.get_tensor().set_names({name})
    return converted


def _rounded(model: Any, tokenizer: Any, documents: list[str]) -> Any:
    import nncf

    def inputs(document: str) -> dict[str, Any]:
        return dict(tokenizer([QUERY], [document], truncation=True, max_length=512, return_tensors="np"))

    return nncf.quantize(
        model,
        nncf.Dataset(documents[:CALIBRATION], inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=min(CALIBRATION, len(documents)),
    )


def _scorer(run: Any, tokenizer: Any, documents: list[str], batch: int) -> Callable[[], Logits]:
    def score() -> Logits:
        ids = tokenizer([QUERY] * len(documents), documents, truncation=True, max_length=512)
        order = sorted(range(len(documents)), key=lambda i: -len(ids["input_ids"][i]))
        logits = np.empty(len(documents))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            rows = {name: [column[i] for i in part] for name, column in ids.items()}
            padded = tokenizer.pad(rows, return_tensors="np")
            logits[part] = run(dict(padded))[0][:, 0]
        return logits

    return score
