"""Heads that sentence-transformers builds from modules: `modules.json` lists them, and each has a folder with its own
`config.json` and weights (layout of version 6; `Dense` and `LayerNorm` of earlier versions are the same).

Such a cross-encoder is a bare encoder, a pooling, and layers of which the last outputs the score. An embedding model
may project its pooled vector in the same way. All modules are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sie_server.models.batch import PackedBatch, Readout
from sie_server.models.heads.pooling import pooled_states, pooling_readout
from sie_server.models.layers.linear import LayerNorm, Linear, Weights
from sie_server.models.spec import (
    Activation,
    ClassifierSpec,
    DenseSpec,
    ModuleSpec,
    NormSpec,
    UnsupportedCheckpoint,
    inside,
    read_json,
)

VECTOR, SCORES = "sentence_embedding", "scores"  # names of module inputs and outputs
NORM_EPS = 1e-5  # the default of torch.nn.LayerNorm; the configuration has no field for it
# by class name in torch.nn
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU": F.gelu,
    "Identity": lambda x: x,
    "ReLU": F.relu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def library_config(directory: Path) -> dict[str, Any]:
    """Read sentence-transformers' own configuration file; empty without the file."""
    path = directory / "config_sentence_transformers.json"
    content: dict[str, Any] = read_json(path) if path.exists() else {}
    return content


def read_activation(directory: Path, config: dict[str, Any]) -> Activation:
    """Return the function that turns the logit into the score.

    The rule is that of sentence-transformers: `activation_fn` in its own configuration file, else
    `sentence_transformers.activation_fn` in config.json, else `sbert_ce_default_activation_function`, else sigmoid for
    one label.

    Raises:
        UnsupportedCheckpoint: it is another function.
    """
    named = library_config(directory).get("activation_fn")
    named = named or (config.get("sentence_transformers") or {}).get("activation_fn")
    named = named or config.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid"
    known: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
    name = str(named).rsplit(".", 1)[-1]
    if name not in known:
        raise UnsupportedCheckpoint(
            f"the activation {named!r} of the checkpoint is not supported; supported: {', '.join(known)}"
        )
    return known[name]


def read_module(directory: Path, kind: str, folder: str) -> ModuleSpec:
    """Read the configuration of a module in modules.json; `kind` is in `MODULES`.

    Raises:
        UnsupportedCheckpoint: the configuration lacks a field, or has an unsupported value.
    """
    config = read_json(inside(directory, folder) / "config.json")
    try:
        return MODULES[kind](folder, config)
    except KeyError as missing:
        raise UnsupportedCheckpoint(f"{folder}/config.json lacks {missing.args[0]!r}") from None


def _dense(folder: str, config: dict[str, Any]) -> DenseSpec:
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not activation.startswith("torch.nn."):
        raise UnsupportedCheckpoint(
            f"{folder}/config.json: activation_function {activation!r} is not supported; "
            f"supported: {', '.join(ACTIVATIONS)} of torch.nn"
        )
    reads = config.get("module_input_name") or VECTOR
    writes = config.get("module_output_name") or reads
    if reads != VECTOR or writes not in (VECTOR, SCORES):
        raise UnsupportedCheckpoint(
            f"{folder} reads {reads!r} and writes {writes!r}; a Dense module must read {VECTOR!r} and write "
            f"{VECTOR!r} or {SCORES!r}"
        )
    if config.get("use_residual"):
        raise UnsupportedCheckpoint(f"{folder}/config.json: use_residual is not supported")
    return DenseSpec(
        folder,
        config["in_features"],
        config["out_features"],
        config.get("bias", True),
        name,
        writes == SCORES,
    )


def _norm(folder: str, config: dict[str, Any]) -> NormSpec:
    return NormSpec(folder, config["dimension"])


MODULES: dict[str, Callable[[str, dict[str, Any]], ModuleSpec]] = {"Dense": _dense, "LayerNorm": _norm}


def check_modules(modules: Sequence[ModuleSpec], width: int) -> None:
    """Check that each module's input has the width of the previous output; `width` is that of the pooled vector.

    Raises:
        UnsupportedCheckpoint: two widths differ, or a module follows the one that outputs the scores.
    """
    for module in modules:
        if module.inputs != width:
            raise UnsupportedCheckpoint(
                f"{module.folder} expects vectors of width {module.inputs}, got {width} from the previous module"
            )
        width = module.outputs
    early = [m.folder for m in modules[:-1] if isinstance(m, DenseSpec) and m.scores]
    if early:
        raise UnsupportedCheckpoint(f"{early[0]} outputs the scores, but modules.json lists modules after it")


def is_cross_encoder(directory: Path, modules: Sequence[ModuleSpec]) -> bool:
    """Return True when the last module outputs one score.

    Raises:
        UnsupportedCheckpoint: the last module outputs several scores, or a CrossEncoder has no module for its score.
    """
    last = modules[-1] if modules else None
    scores = isinstance(last, DenseSpec) and last.scores
    if library_config(directory).get("model_type") == "CrossEncoder" and not scores:
        raise UnsupportedCheckpoint(
            f"the checkpoint is a CrossEncoder, but the last module in modules.json does not output {SCORES!r}"
        )
    if last is not None and scores and last.outputs != 1:
        raise UnsupportedCheckpoint(
            f"{last.folder} outputs {last.outputs} scores; a reranker must have exactly one"
        )
    return scores


class ModuleStack:
    """The modules after the pooling; an empty stack returns its input."""

    def __init__(self, modules: Sequence[ModuleSpec], weights: Weights) -> None:
        self._steps = [_build(module, weights.folder(module.folder)) for module in modules]

    def __call__(self, x: Tensor) -> Tensor:
        """Return [sequences, outputs of the last module] fp32 from [sequences, inputs of the first] fp32."""
        for step in self._steps:
            x = step(x)
        return x


def _build(module: ModuleSpec, weights: Weights) -> Callable[[Tensor], Tensor]:
    if isinstance(module, NormSpec):
        return LayerNorm.load(weights, "norm", module.inputs, NORM_EPS, torch.float32)
    linear = Linear.load(weights, "linear", module.outputs, module.inputs, torch.float32, bias=module.bias)
    activation = ACTIVATIONS[module.activation]
    return lambda x: activation(linear(x))


class ModularClassifier:
    """Pooling → modules → one logit, in fp32."""

    def __init__(self, spec: ClassifierSpec, weights: Weights) -> None:
        self._pooling = spec.pooling
        self.readout: Readout = pooling_readout(spec.pooling)
        self._modules = ModuleStack(spec.modules, weights)

    def logits(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Return [sequences] fp32 from the hidden states of `readout`."""
        return self._modules(pooled_states(hidden, batch, self._pooling)).squeeze(1)
