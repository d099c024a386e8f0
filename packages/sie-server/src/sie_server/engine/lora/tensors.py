"""The tensors of a PEFT adapter, by module of the base model, and whether they and the configuration agree.

Every tensor belongs to a module that is there and that the configuration names, and what it names is there whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.lora.config import LoraConfig
from sie_server.engine.storage.weights import HARMLESS, StoredTensor, TensorReaders, some_of, tensor_readers
from sie_server.models.lora import Target
from sie_server.models.spec import UnsupportedCheckpoint

PREFIX = "base_model.model."
FILES = ("adapter_model.safetensors", "adapter_model.bin")
# PEFT's own names of a retrained module's weights; `original_module` is the base's, and of no effect
BASE = ".base_layer"
WRAPPERS = (BASE, ".modules_to_save")
UNUSED = ".original_module"


@dataclass
class AdapterTensors:
    """What the file holds, by module of the base model."""

    low: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → A and B
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → weight and bias
    base: dict[str, Tensor] = field(default_factory=dict)  # module → the weight that A and B were trained on


def read_tensors(directory: Path, config: LoraConfig, targets: Mapping[str, Target]) -> AdapterTensors:
    """What the adapter's file holds for the model whose modules are `targets`.

    Raises:
        UnsupportedCheckpoint: something is missing, left over, or of another model.
    """
    tensors = _sorted(_read(directory), targets)
    _check_names(config, tensors, targets)
    _check_complete(config, tensors, targets)
    _check_weights(tensors, targets)
    return tensors


def needed_bytes(directory: Path, targets: Mapping[str, Target]) -> int:
    """What its tensors will take on the device, from the header of its file; one without a place counts nothing.

    A layer that several modules have become part of has that many more outputs: B, weights and biases are as wide.

    Raises:
        UnsupportedCheckpoint: there is no file, or it is not readable.
    """
    sizes: dict[Any, int] = {}
    for name, stored in _stored(directory).items():
        module, _, kind = name.removeprefix(PREFIX).rpartition(".")
        inner, _, part = module.rpartition(".")
        low = part in ("lora_A", "lora_B")
        plain = inner if low else _plain(module)
        target = targets.get(plain)
        if target is None or (module.endswith(BASE) and kind == "weight"):  # left, or compared and dropped
            continue
        layer = target.layer
        if not target.linear:  # a norm is exchanged whole
            sizes[layer] = layer.weight.nbytes + (0 if layer.bias is None else layer.bias.nbytes)
            continue
        rows = (*stored.shape, 1)[0] if part == "lora_A" else layer.outputs
        what = (layer, kind) if kind == "bias" else (plain, part if low else kind)  # PEFT writes some twice
        sizes[what] = rows * math.prod(stored.shape[1:]) * layer.weight.dtype.itemsize
    return sum(sizes.values())


def _stored(directory: Path) -> TensorReaders:
    path = next((directory / name for name in FILES if (directory / name).exists()), None)
    if path is None:
        raise UnsupportedCheckpoint(f"no adapter in {directory}: neither {' nor '.join(FILES)}")
    return tensor_readers(path)


def _read(directory: Path) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): _numbers(name, stored) for name, stored in _stored(directory).items()}


def _numbers(name: str, stored: StoredTensor) -> Tensor:
    if not name.startswith(PREFIX):
        raise UnsupportedCheckpoint(f"the tensor {name!r} is not named as PEFT names it: {PREFIX}…")
    tensor = stored.read()
    if not tensor.is_floating_point():
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} holds {tensor.dtype} values; an adapter's are of floating point"
        )
    if tensor.itemsize == 1:  # torch computes nothing with 8 bits
        tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise UnsupportedCheckpoint(f"the tensor {name!r} holds something else than finite numbers")
    return tensor


def _sorted(tensors: dict[str, Tensor], targets: Mapping[str, Target]) -> AdapterTensors:
    found = AdapterTensors()
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module.endswith(UNUSED):
            continue
        inner, _, part = module.rpartition(".")
        if part in ("lora_A", "lora_B") and kind == "weight":
            found.low.setdefault(inner, {})[part] = tensor
        elif "lora_" in name:
            raise UnsupportedCheckpoint(
                f"the adapter has the tensor {name!r}; only lora_A.weight and lora_B.weight of linear layers are served"
            )
        else:
            plain = _plain(module)
            if (
                module.endswith(BASE) and kind == "weight"
            ):  # of an output matrix, PEFT saves it beside A and B
                found.base[plain] = tensor
                continue
            same = found.whole.setdefault(plain, {}).setdefault(kind, tensor)
            if not torch.equal(same, tensor):  # PEFT writes some twice
                raise UnsupportedCheckpoint(f"the adapter has two different tensors for {plain}.{kind}")
    for modules in (
        found.low,
        found.whole,
    ):  # changes to a part of the base model that serving has no use for
        for module in modules.keys() - targets.keys():
            if HARMLESS.search(f"{module}.weight"):
                del modules[module]
    return found


def _plain(module: str) -> str:
    """The module's name without PEFT's wrappers."""
    return next((module.removesuffix(wrapper) for wrapper in WRAPPERS if module.endswith(wrapper)), module)


def _check_names(config: LoraConfig, tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """Every tensor belongs to a module that is there, and that the configuration names."""
    linear = [name for name, target in targets.items() if target.linear]
    for module in tensors.low:
        if module not in targets or not targets[module].linear:
            raise UnsupportedCheckpoint(
                f"the adapter changes {module!r}, which is no linear layer of this model that adapters can change; "
                f"those are {some_of(linear)}"
            )
        if not config.changes(module):
            raise UnsupportedCheckpoint(
                f"the adapter has weights for {module!r}, not one of its target_modules"
            )
    for module, parts in tensors.whole.items():
        for kind in parts:
            if module not in targets or kind not in ("weight", "bias"):
                raise UnsupportedCheckpoint(
                    f"the adapter has its own {module}.{kind}, which cannot be exchanged per sequence; "
                    f"layers where that is possible: {some_of(list(targets))}"
                )
            if not (config.retrains(module) or (kind == "bias" and _biased(config, module, tensors))):
                raise UnsupportedCheckpoint(
                    f"the adapter has its own {module}.{kind}, which neither modules_to_save nor bias announces"
                )


def _biased(config: LoraConfig, module: str, tensors: AdapterTensors) -> bool:
    return config.bias == "all" or (config.bias == "lora_only" and module in tensors.low)


def _check_complete(config: LoraConfig, tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """What the configuration names is there whole."""
    for module, target in targets.items():
        expected = []
        if target.linear and config.changes(module):
            expected = [(tensors.low, "lora_A"), (tensors.low, "lora_B")]
        elif config.retrains(module):
            expected = [(tensors.whole, "weight")]
        if target.layer.bias is not None and (config.retrains(module) or _biased(config, module, tensors)):
            expected.append((tensors.whole, "bias"))
        for table, kind in expected:
            if kind not in table.get(module, {}):
                raise UnsupportedCheckpoint(
                    f"the adapter lacks {kind} of {module!r}, which its configuration names"
                )
    if not tensors.low and not tensors.whole:
        raise UnsupportedCheckpoint("the adapter changes nothing of this model")


def _check_weights(tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """Where the adapter brings the weight it was trained on, it is this model's, up to rounding."""
    for module, saved in tensors.base.items():
        target = targets.get(module)
        if target is None or not target.linear:
            raise UnsupportedCheckpoint(
                f"the adapter has a weight for {module!r}, no linear layer of this model"
            )
        check_shape(saved, target.shape, f"{module}.base_layer.weight")
        own = target.layer.plain_weight()[target.outputs].float().cpu()
        kept = saved.float() if target.rows is None else saved[target.rows].float()
        if not torch.allclose(kept, own, rtol=0.02, atol=1e-3):
            raise UnsupportedCheckpoint(f"the adapter was trained on another base: {module}.weight differs")


def check_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    """A tensor of another shape was trained on another model, or at another rank than the configuration says."""
    if tuple(tensor.shape) != shape:
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} has shape {list(tensor.shape)}, this model and the adapter's rank ask for "
            f"{list(shape)}: was it trained on another base?"
        )
