"""ONNX Runtime as a contender: fp32, and dynamic int8.

    pip install onnxruntime onnx

Each setting is the faster one of those tried on MiniLM-L6, or necessary for a fair comparison:

- The model is exported with attention written out. ONNX Runtime fuses this form, but not the form that
  `scaled_dot_product_attention` exports to, which was 4 % (fp32) and 16 % (int8) slower.
- All of its graph optimisations are on. Those of `onnxruntime.transformers.optimizer` on top cost 2 % in fp32 and
  14 % in int8, because the fused attention operator then has no 8-bit product.
- int8: weights per channel, symmetric; activations with one scale per product, computed at run time. The former
  costs no time and reduces errors by a quarter. All 8 bits are used (`reduce_range=False`); CPUs without VNNI need 7.
  Only products with weights are rounded, as in our int8.
- It has as many threads as ours, all in one operator, because an encoder has no parallel branches.
- Documents are sorted by length and padded in small batches, as for OpenVINO.
"""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench.contenders import Contender
from bench.rivals import exported

NEEDS = "pip install onnxruntime onnx"
FP32, INT8 = "fp32.onnx", "int8.onnx"
LABELS = {FP32: "fp32", INT8: "int8 (dynamic)"}
OPSET = 17
FLOAT = 1  # onnx.TensorProto.FLOAT


def installed() -> bool:
    """Return whether ONNX Runtime and onnx, which quantises models, are installed."""
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def contenders(directory: Path, documents: list[str], batch: int) -> list[Contender]:
    """Return ONNX Runtime in fp32 and in int8, with documents sorted by length and padded in batches."""
    with TemporaryDirectory() as folder:
        write(directory, Path(folder))
        runs = {label: read(Path(folder) / name) for name, label in LABELS.items()}
    return [
        exported.contender(f"ONNX Runtime {label}", run, directory, documents, batch)
        for label, run in runs.items()
    ]


def write(directory: Path, folder: Path) -> None:
    """Write both models to a folder, `FP32` and `INT8`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, example = exported.load(directory, "eager")
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "tokens"} for name in example}
    with (
        warnings.catch_warnings()
    ):  # about branches that depend on shapes, which are equal for all batches here
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(example.values()),
            str(folder / FP32),
            input_names=list(example),
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs onnxscript
        )
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a pass that ONNX Runtime makes anyway
    quantize_dynamic(
        str(folder / FP32),
        str(folder / INT8),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=False,
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": FLOAT},
    )


def read(file: Path) -> exported.Run:
    """Load a model that `write` has written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: dict[str, Any]) -> Any:
        return session.run(None, {name: inputs[name] for name in names})[0]

    return run
