"""A directory that PEFT has saved → an `Adapter` of a loaded model: every tensor finds its place, or the load stops.

PEFT names a module as the checkpoint names its weights, so a tensor's name leads to the layer that the module has
become part of (`models.lora.Target`). Where several modules are one product, the adapter's are made one as well: their
A side by side, each B at the outputs of its module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sie_server.engine.document_cache import ModelDocuments
from sie_server.engine.kinds.base import TextInput
from sie_server.engine.lora.config import CONFIG, LoraConfig, read_lora_config
from sie_server.engine.lora.tensors import AdapterTensors, check_shape, read_tensors
from sie_server.models.lora import Changes, Delta, Norm, Target
from sie_server.models.spec import UnsupportedCheckpoint


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


def read_changes(directory: Path, targets: Mapping[str, Target], base_names: Iterable[str] = ()) -> Changes:
    """Read an adapter for the model whose modules are `targets` and which is known as `base_names`.

    Raises:
        UnsupportedCheckpoint: something in it could not be applied; the message says what.
    """
    config = read_lora_config(directory)
    _check_base(config, base_names)
    tensors = read_tensors(directory, config, targets)
    changes: dict[Any, Delta | Norm] = {}
    for layer, modules in _by_layer(targets).items():
        change = _delta(config, tensors, modules) if modules[0][1].linear else _norm(tensors, *modules[0])
        if change is not None:
            changes[layer] = change
    return changes


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


def _delta(config: LoraConfig, tensors: AdapterTensors, modules: list[tuple[str, Target]]) -> Delta | None:
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


def _norm(tensors: AdapterTensors, module: str, target: Target) -> Norm | None:
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
        check_shape(low[kind], shape, f"{module}.{kind}.weight")
    layer = target.layer
    b = low["lora_B"].float() * config.scale_of(module)
    wide = torch.zeros(rank, layer.outputs)
    wide[:, target.outputs] = (b if target.rows is None else b[target.rows]).T
    to = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    scaled = wide.to(**to)
    if not torch.isfinite(scaled).all():
        raise UnsupportedCheckpoint(
            f"{CONFIG}: lora_alpha or alpha_pattern make lora_B of {module!r} {config.scale_of(module):g} times as "
            f"large, more than {str(layer.weight.dtype).removeprefix('torch.')} can hold"
        )
    return low["lora_A"].T.to(**to).contiguous(), scaled


def _exchange(own: dict[str, Tensor], module: str, target: Target) -> Tensor:
    """The difference to the layer's own weight, [inputs, outputs of the layer]."""
    check_shape(own["weight"], target.shape, f"{module}.weight")
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
    check_shape(own["bias"], target.shape[:1], f"{module}.bias")
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
    check_shape(own[kind], target.shape, f"{module}.{kind}")
    return own[kind].to(base.device, base.dtype)
