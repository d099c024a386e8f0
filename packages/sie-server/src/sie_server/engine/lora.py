"""A directory that PEFT has saved → an `Adapter` of a loaded model: every tensor finds its place, or the load stops.

PEFT names a module as the checkpoint names its weights, so a tensor's name leads to the layer that the module has
become part of (`models.lora.Target`). Where several modules are one product, the adapter's are made one as well: their A side
by side, each B at the outputs of its module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.inputs import TextInput
from sie_server.engine.lora_config import LoraConfig, read_lora_config
from sie_server.engine.weights import HARMLESS, some_of, tensor_readers
from sie_server.models.lora import Changes, Delta, Norm, Target
from sie_server.models.spec import UnsupportedCheckpoint

PREFIX = "base_model.model."
FILES = ("adapter_model.safetensors", "adapter_model.bin")
# PEFT's own names of a retrained module's weights; `original_module` is the base's, and of no effect
BASE = ".base_layer"
WRAPPERS = (BASE, ".modules_to_save")
UNUSED = ".original_module"


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of one loaded model; its sequences' jobs hold it, so they finish with it after it is detached."""

    directory: Path
    changes: Changes
    input: TextInput  # as the model's own, with a share of the document cache for itself
    documents: ModelDocuments | None

    @property
    def nbytes(self) -> int:
        """Bytes its tensors take on the device."""
        return sum(tensor.nbytes for change in self.changes.values() for tensor in change.tensors)


@dataclass
class _Tensors:
    """What the file holds, by module of the base model."""

    low: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → A and B
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # module → weight and bias
    base: dict[str, Tensor] = field(default_factory=dict)  # module → the weight that A and B were trained on


def read_changes(directory: Path, targets: Mapping[str, Target], base_names: Iterable[str] = ()) -> Changes:
    """Read an adapter for the model whose modules are `targets` and which is known as `base_names`.

    Raises:
        UnsupportedCheckpoint: something in it could not be applied; the message says what.
    """
    config = read_lora_config(directory)
    _check_base(config, base_names)
    tensors = _sorted(_read(directory), targets)
    _check_names(config, tensors, targets)
    _check_complete(config, tensors, targets)
    _check_weights(tensors, targets)
    return _changes(config, tensors, targets)


def _check_base(config: LoraConfig, names: Iterable[str]) -> None:
    """Hub ids can be compared; a path on the machine of the training says nothing."""
    known = [name for name in names if _hub_id(name)]
    if not known or not config.base or not _hub_id(config.base):
        return
    if config.base.lower() not in (name.lower() for name in known):
        raise UnsupportedCheckpoint(
            f"the adapter was trained on {config.base!r}, this model is {' or '.join(known)}; "
            "if they are the same, say so in base_model_name_or_path of adapter_config.json"
        )


def _hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _read(directory: Path) -> dict[str, Tensor]:
    path = next((directory / name for name in FILES if (directory / name).exists()), None)
    if path is None:
        raise UnsupportedCheckpoint(f"no adapter in {directory}: neither {' nor '.join(FILES)}")
    tensors = {name: read() for name, read in tensor_readers(path).items()}
    for name, tensor in tensors.items():
        if not name.startswith(PREFIX):
            raise UnsupportedCheckpoint(f"the tensor {name!r} is not named as PEFT names it: {PREFIX}…")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UnsupportedCheckpoint(f"the tensor {name!r} holds something else than finite numbers")
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _sorted(tensors: dict[str, Tensor], targets: Mapping[str, Target]) -> _Tensors:
    found = _Tensors()
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
            plain = next((module.removesuffix(w) for w in WRAPPERS if module.endswith(w)), module)
            if module.endswith(BASE) and kind == "weight":  # of an output matrix, PEFT saves it beside A and B
                found.base[plain] = tensor
                continue
            same = found.whole.setdefault(plain, {}).setdefault(kind, tensor)
            if not torch.equal(same, tensor):  # PEFT writes some twice
                raise UnsupportedCheckpoint(f"the adapter has two different tensors for {plain}.{kind}")
    for modules in (found.low, found.whole):  # changes to a part of the base model that serving has no use for
        for module in modules.keys() - targets.keys():
            if HARMLESS.search(f"{module}.weight"):
                del modules[module]
    return found


def _check_names(config: LoraConfig, tensors: _Tensors, targets: Mapping[str, Target]) -> None:
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


def _biased(config: LoraConfig, module: str, tensors: _Tensors) -> bool:
    return config.bias == "all" or (config.bias == "lora_only" and module in tensors.low)


def _check_complete(config: LoraConfig, tensors: _Tensors, targets: Mapping[str, Target]) -> None:
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


def _check_weights(tensors: _Tensors, targets: Mapping[str, Target]) -> None:
    """Where the adapter brings the weight it was trained on, it is this model's, up to rounding."""
    for module, saved in tensors.base.items():
        target = targets.get(module)
        if target is None or not target.linear:
            raise UnsupportedCheckpoint(f"the adapter has a weight for {module!r}, no linear layer of this model")
        _check_shape(saved, target.shape, f"{module}.base_layer.weight")
        own = target.layer.plain_weight()[target.outputs].float().cpu()
        kept = saved.float() if target.rows is None else saved[target.rows].float()
        if not torch.allclose(kept, own, rtol=0.02, atol=1e-3):
            raise UnsupportedCheckpoint(f"the adapter was trained on another base: {module}.weight differs")


def _changes(config: LoraConfig, tensors: _Tensors, targets: Mapping[str, Target]) -> Changes:
    changes: dict[Any, Delta | Norm] = {}
    for layer, modules in _by_layer(targets).items():
        change = _delta(config, tensors, modules) if modules[0][1].linear else _norm(tensors, *modules[0])
        if change is not None:
            changes[layer] = change
    return changes


def _delta(config: LoraConfig, tensors: _Tensors, modules: list[tuple[str, Target]]) -> Delta | None:
    """What is other in one layer, which may be several modules."""
    pairs = [_pair(config, tensors.low[m], m, t) for m, t in modules if m in tensors.low]
    products: list[tuple[Tensor | None, Tensor]] = []
    if pairs:
        products.append((torch.cat([a for a, _ in pairs], dim=1), torch.cat([b for _, b in pairs])))
    own = [(tensors.whole[m], m, t) for m, t in modules if m in tensors.whole]
    products += [(None, _exchange(*part)) for part in own if "weight" in part[0]]
    shifts = [_shift(*part) for part in own if "bias" in part[0]]
    shift = sum(shifts[1:], shifts[0]) if shifts else None
    return Delta(tuple(products), shift) if products or shifts else None


def _norm(tensors: _Tensors, module: str, target: Target) -> Norm | None:
    own = tensors.whole.get(module)
    if own is None:
        return None
    weight = _like(own, "weight", module, target)
    assert weight is not None  # every norm has one
    return Norm(weight, _like(own, "bias", module, target))


def _by_layer(targets: Mapping[str, Target]) -> dict[Any, list[tuple[str, Target]]]:
    layers: dict[Any, list[tuple[str, Target]]] = {}
    for module, target in targets.items():
        layers.setdefault(target.layer, []).append((module, target))
    return layers


def _pair(config: LoraConfig, low: dict[str, Tensor], module: str, target: Target) -> tuple[Tensor, Tensor]:
    """A [inputs, rank], and B times the scale [rank, outputs of the layer], 0 at those of other modules."""
    rank, (outputs, inputs) = config.rank_of(module), target.shape
    for kind, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
        _check_shape(low[kind], shape, f"{module}.{kind}.weight")
    layer = target.layer
    b = low["lora_B"].float() * config.scale_of(module)
    wide = torch.zeros(rank, layer.outputs)
    wide[:, target.outputs] = (b if target.rows is None else b[target.rows]).T
    to = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return low["lora_A"].T.to(**to).contiguous(), wide.to(**to)


def _exchange(own: dict[str, Tensor], module: str, target: Target) -> Tensor:
    """The difference to the layer's own weight, [inputs, outputs of the layer]."""
    _check_shape(own["weight"], target.shape, f"{module}.weight")
    base = target.layer.plain_weight()
    weight = own["weight"] if target.rows is None else own["weight"][target.rows]
    wide = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
    wide[target.outputs] = weight.to(base.device).float() - base[target.outputs].float()
    return wide.to(base.dtype).T.contiguous()


def _shift(own: dict[str, Tensor], module: str, target: Target) -> Tensor:
    """The difference to the layer's own bias, [outputs of the layer]."""
    base = target.layer.bias
    if base is None:
        raise UnsupportedCheckpoint(f"the adapter has a bias for {module!r}, which has none in this model")
    _check_shape(own["bias"], target.shape[:1], f"{module}.bias")
    shift = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
    shift[target.outputs] = own["bias"].to(base.device).float() - base[target.outputs].float()
    return shift.to(base.dtype)


def _like(own: dict[str, Tensor], kind: str, module: str, target: Target) -> Tensor | None:
    """A norm's weight or bias under the adapter; what it does not retrain stays the model's."""
    base: Tensor | None = getattr(target.layer, kind)
    if kind not in own:
        return base
    if base is None:
        raise UnsupportedCheckpoint(f"the adapter has a {kind} for {module!r}, which has none in this model")
    _check_shape(own[kind], target.shape, f"{module}.{kind}")
    return own[kind].to(base.device, base.dtype)


def _check_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape:
        raise UnsupportedCheckpoint(
            f"the tensor {name!r} has shape {list(tensor.shape)}, this model and the adapter's rank ask for "
            f"{list(shape)}: was it trained on another base?"
        )
