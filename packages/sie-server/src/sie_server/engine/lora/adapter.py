"""A directory saved by PEFT → an `Adapter` of a loaded model. A tensor without a place stops the load.

PEFT names modules like the checkpoint names its weights, so a tensor's name leads to the layer that the module became
part of (`models.lora.Target`). If several modules form one product, their adapter matrices are merged as well: the A
matrices are concatenated, and each B is placed at the outputs of its module.
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
    """An adapter of a loaded model. A job holds the changes, so it can finish after the adapter is detached."""

    directory: Path
    changes: Changes
    input: TextInput  # like the model's, with `documents` as its document cache
    documents: ModelDocuments | None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors on the device."""
        return sum(tensor.nbytes for change in self.changes.values() for tensor in change.tensors)


def read_changes(directory: Path, targets: Mapping[str, Target], base_names: Iterable[str] = ()) -> Changes:
    """Read an adapter for a model with the modules `targets` and the hub ids `base_names`.

    Raises:
        UnsupportedCheckpoint: a part of the adapter cannot be applied to the model.
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
    """Compare the adapter's base with `names`, if both are hub ids. Paths of the training machine are ignored."""
    known = [name for name in names if _hub_id(name)]
    if not known or not config.base or not _hub_id(config.base):
        return
    if config.base.lower() not in (name.lower() for name in known):
        raise UnsupportedCheckpoint(
            f"the adapter was trained on {config.base!r}, but this model is {' or '.join(known)}; "
            "if they are the same, change base_model_name_or_path in adapter_config.json"
        )


def _hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _delta(config: LoraConfig, tensors: AdapterTensors, modules: list[tuple[str, Target]]) -> Delta | None:
    """Return the changes to a layer, which may consist of several modules; None: no change."""
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
    layer = target.layer
    if layer.bias is None and "bias" in own:
        raise UnsupportedCheckpoint(f"the adapter has a bias for {module!r}, which has no bias in this model")
    weight = _like(own, "weight", layer.weight, module)
    return Norm(weight, None if layer.bias is None else _like(own, "bias", layer.bias, module))


def _by_layer(targets: Mapping[str, Target]) -> dict[Any, list[tuple[str, Target]]]:
    layers: dict[Any, list[tuple[str, Target]]] = {}
    for module, target in targets.items():
        layers.setdefault(target.layer, []).append((module, target))
    return layers


def _pair(config: LoraConfig, low: dict[str, Tensor], module: str, target: Target) -> tuple[Tensor, Tensor]:
    """Return A [inputs, rank] and the scaled B [rank, outputs of the layer], 0 at other modules' outputs."""
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
            f"{CONFIG}: lora_alpha or alpha_pattern scale lora_B of {module!r} by {config.scale_of(module):g}, "
            f"beyond the range of {str(layer.weight.dtype).removeprefix('torch.')}"
        )
    return low["lora_A"].T.to(**to).contiguous(), scaled


def _exchange(own: dict[str, Tensor], module: str, target: Target) -> Tensor:
    """Return the difference to the layer's weight, [inputs, outputs of the layer]."""
    check_shape(own["weight"], target.shape, f"{module}.weight")
    base = target.layer.plain_weight()
    weight = own["weight"] if target.rows is None else own["weight"][target.rows]
    wide = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
    wide[target.outputs] = weight.to(base.device).float() - base[target.outputs].float()
    return wide.to(base.dtype).T.contiguous()


def _shift(own: dict[str, Tensor], module: str, target: Target) -> Tensor:
    """Return the difference to the layer's bias, [outputs of the layer]."""
    base = target.layer.bias
    if base is None:
        raise UnsupportedCheckpoint(f"the adapter has a bias for {module!r}, which has no bias in this model")
    check_shape(own["bias"], target.shape[:1], f"{module}.bias")
    shift = torch.zeros(base.shape, dtype=torch.float32, device=base.device)
    shift[target.outputs] = own["bias"].to(base.device).float() - base[target.outputs].float()
    return shift.to(base.dtype)


def _like(own: dict[str, Tensor], kind: str, base: Tensor, module: str) -> Tensor:
    """Return a norm's weight or bias with the adapter; if the adapter has none, the model's."""
    if kind not in own:
        return base
    check_shape(own[kind], tuple(base.shape), f"{module}.{kind}")
    return own[kind].to(base.device, base.dtype)
