"""OpenVINO as a contender: bf16, and int8 by NNCF's quantisation after training.

    pip install openvino nncf

The settings are the fastest of those that its documentation names for one process: the hint LATENCY, which gives all
threads to one request, as many threads as ours, and bf16 for all operators that are not int8 (fp32 without bf16).
Documents are sorted by length and padded in small batches, which was faster than one large batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bench.contenders import Contender
from bench.rivals import exported
from bench.workload import QUERY

CALIBRATION = 64  # documents whose activations NNCF reads
NEEDS = "pip install openvino nncf"
BF16, INT8 = "bf16.xml", "int8.xml"
LABELS = {BF16: "bf16", INT8: "int8 (NNCF)"}


def installed() -> bool:
    """Return whether OpenVINO and NNCF are installed."""
    return find_spec("openvino") is not None and find_spec("nncf") is not None


def contenders(directory: Path, documents: list[str], batch: int) -> list[Contender]:
    """Return OpenVINO in bf16 and in int8, with documents sorted by length and padded in batches."""
    return [
        exported.contender(f"OpenVINO {LABELS[name]}", _compiled(model), directory, documents, batch)
        for name, model in _converted(directory, documents)
    ]


def write(directory: Path, documents: list[str], folder: Path) -> None:
    """Write both models to a folder, `BF16` (its weights are fp32, and rounded when it is loaded) and `INT8`."""
    import openvino as ov

    for name, model in _converted(directory, documents):
        ov.save_model(model, folder / name, compress_to_fp16=False)


def read(file: Path) -> exported.Run:
    """Load a model that `write` has written."""
    import openvino as ov

    return _compiled(ov.Core().read_model(file))


def _compiled(model: Any) -> exported.Run:
    import openvino as ov

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    compiled = ov.Core().compile_model(model, "CPU", options)
    return lambda inputs: compiled(inputs)[0]


def _converted(directory: Path, documents: list[str]) -> Iterator[tuple[str, Any]]:
    """Convert the model, then round a copy of it, which takes longer."""
    import nncf
    import openvino as ov
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model, example = exported.load(directory, "sdpa")
    plain = ov.convert_model(model, example_input=tuple(example.values()))
    for given, name in zip(plain.inputs, example, strict=True):
        given.get_tensor().set_names({name})

    def inputs(document: str) -> dict[str, Any]:
        pair = tokenizer([QUERY], [document], truncation=True, max_length=512, return_tensors="np")
        return {name: pair[name] for name in example}

    yield BF16, plain
    rounded = nncf.quantize(
        plain,
        nncf.Dataset(documents[:CALIBRATION], inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=min(CALIBRATION, len(documents)),
    )
    yield INT8, rounded
