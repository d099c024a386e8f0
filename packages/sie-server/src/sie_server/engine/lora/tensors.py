"""The tensors of a PEFT adapter by module of the base model, checked against its configuration.

Every tensor must belong to a module that exists and that the configuration names, and every module that it names must
have all its tensors.
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
from sie_server.engine.storage.formats.checkpoint import tensor_readers
from sie_server.engine.storage.formats.stored import StoredTensor, TensorReaders
from sie_server.engine.storage.weights import HARMLESS, some_of
from sie_server.models.lora import Target
from sie_server.models.spec import UnsupportedCheckpoint

PREFIX = "base_model.model."
FILES = ("adapter_model.safetensors", "adapter_model.bin")
# PEFT's names for the weights of a retrained module; `original_module` is a copy of the base's and has no effect
BASE = ".base_layer"
WRAPPERS = (BASE, ".modules_to_save")
UNUSED = ".original_module"


@dataclass
class AdapterTensors:
    """The tensors of an adapter file, by module of the base model."""

    low: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → A and B
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → weight and bias
    base: dict[str, Tensor] = field(default_factory=dict)  # module → the weight that A and B were trained on


def read_tensors(directory: Path, config: LoraConfig, targets: Mapping[str, Target]) -> AdapterTensors:
    """Read the adapter's tensors for a model with the modules `targets`.

    Raises:
        UnsupportedCheckpoint: a tensor is missing, unused, or made for another model.
    """
    tensors = _sorted(_read(directory), targets)
    _check_names(config, tensors, targets)
    _check_complete(config, tensors, targets)
    _check_weights(tensors, targets)
    return tensors


def needed_bytes(directory: Path, targets: Mapping[str, Target]) -> int:
    """Return the bytes of an adapter's tensors on the device, from its file's header.

    Tensors without a place count 0. B, weights and biases are as wide as the layer, which may be several modules.

    Raises:
        UnsupportedCheckpoint: the file is missing or unreadable.
    """
    sizes: dict[Any, int] = {}
    for name, stored in _stored(directory).items():
        module, _, kind = name.removeprefix(PREFIX).rpartition(".")
        inner, _, part = module.rpartition(".")
        low = part in ("lora_A", "lora_B")
        plain = inner if low else _plain(module)
        target = targets.get(plain)
        if target is None or (module.endswith(BASE) and kind == "weight"):  # unused, or only compared
            continue
        layer = target.layer
        if not target.linear:  # a norm is replaced as a whole
            sizes[layer] = layer.weight.nbytes + (0 if layer.bias is None else layer.bias.nbytes)
            continue
        rows = (*stored.shape, 1)[0] if part == "lora_A" else layer.outputs
        # a key per tensor, because PEFT writes some tensors twice
        key = (layer, kind) if kind == "bias" else (plain, part if low else kind)
        sizes[key] = rows * math.prod(stored.shape[1:]) * layer.weight.dtype.itemsize
    return sum(sizes.values())


def _stored(directory: Path) -> TensorReaders:
    path = next((directory / name for name in FILES if (directory / name).exists()), None)
    if path is None:
        raise UnsupportedCheckpoint(f"no adapter in {directory}: it has neither {' nor '.join(FILES)}")
    return tensor_readers(path)


def _read(directory: Path) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): _numbers(name, stored) for name, stored in _stored(directory).items()}


def _numbers(name: str, stored: StoredTensor) -> Tensor:
    if not name.startswith(PREFIX):
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} does not have a PEFT name, which starts with {PREFIX}"
        )
    tensor = stored.read()
    if not tensor.is_floating_point():
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} has dtype {tensor.dtype}, expected a floating-point dtype"
        )
    if tensor.itemsize == 1:  # torch has no arithmetic for 8-bit floats
        tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise UnsupportedCheckpoint(f"the tensor {name!r} holds values that are not finite")
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
                f"the adapter has the tensor {name!r}; of linear layers, only lora_A.weight and lora_B.weight "
                "are supported"
            )
        else:
            plain = _plain(module)
            # PEFT saves the base weight of an output matrix together with A and B
            if module.endswith(BASE) and kind == "weight":
                found.base[plain] = tensor
                continue
            same = found.whole.setdefault(plain, {}).setdefault(kind, tensor)
            if not torch.equal(same, tensor):  # PEFT writes some tensors twice
                raise UnsupportedCheckpoint(f"the adapter has two different tensors for {plain}.{kind}")
    # changes to parts of the base model that serving does not use
    for modules in (found.low, found.whole):
        for module in modules.keys() - targets.keys():
            if HARMLESS.search(f"{module}.weight"):
                del modules[module]
    return found


def _plain(module: str) -> str:
    """Return the module's name without PEFT's wrappers."""
    return next((module.removesuffix(wrapper) for wrapper in WRAPPERS if module.endswith(wrapper)), module)


def _check_names(config: LoraConfig, tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """Check that every tensor belongs to a module that exists and that the configuration names."""
    linear = [name for name, target in targets.items() if target.linear]
    for module in tensors.low:
        if module not in targets or not targets[module].linear:
            raise UnsupportedCheckpoint(
                f"the adapter changes {module!r}, which is not a linear layer of this model that adapters can change; "
                f"those are {some_of(linear)}"
            )
        if not config.changes(module):
            raise UnsupportedCheckpoint(
                f"the adapter has weights for {module!r}, which is not one of its target_modules"
            )
    for module, parts in tensors.whole.items():
        for kind in parts:
            if module not in targets or kind not in ("weight", "bias"):
                raise UnsupportedCheckpoint(
                    f"the adapter has its own {module}.{kind}, which cannot be replaced per sequence; "
                    f"layers that can: {some_of(list(targets))}"
                )
            if not (config.retrains(module) or (kind == "bias" and _biased(config, module, tensors))):
                raise UnsupportedCheckpoint(
                    f"the adapter has its own {module}.{kind}, which neither modules_to_save nor bias names"
                )


def _biased(config: LoraConfig, module: str, tensors: AdapterTensors) -> bool:
    return config.bias == "all" or (config.bias == "lora_only" and module in tensors.low)


def _check_complete(config: LoraConfig, tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """Check that every module that the configuration names has all its tensors."""
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
        raise UnsupportedCheckpoint("the adapter changes nothing in this model")


def _check_weights(tensors: AdapterTensors, targets: Mapping[str, Target]) -> None:
    """Check that base weights in the adapter's file equal this model's, up to rounding."""
    for module, saved in tensors.base.items():
        target = targets.get(module)
        if target is None or not target.linear:
            raise UnsupportedCheckpoint(
                f"the adapter has a weight for {module!r}, which is not a linear layer of this model"
            )
        check_shape(saved, target.shape, f"{module}.base_layer.weight")
        own = target.layer.plain_weight()[target.outputs].float().cpu()
        kept = saved.float() if target.rows is None else saved[target.rows].float()
        rounding = target.layer.rounding()
        slack = 1e-3 if rounding is None else 1e-3 + rounding[target.outputs].cpu()
        if not ((kept - own).abs() <= 0.02 * own.abs() + slack).all():
            raise UnsupportedCheckpoint(f"the adapter was trained on another base: {module}.weight differs")


def check_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Check a tensor's shape, which depends on the base model and on the configured rank.

    Raises:
        UnsupportedCheckpoint: it has another shape.
    """
    if tuple(tensor.shape) != shape:
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} has shape {list(tensor.shape)}, but this model and the adapter's rank need "
            f"{list(shape)}: was it trained on another base?"
        )
