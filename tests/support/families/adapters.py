"""Random PEFT adapters, saved by `peft`; unlike before a training, B is not zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def make_adapter(model: Any, directory: Path, *, seed: int = 0, scale: float = 0.2, **config: Any) -> Path:
    """Wrap `model` (changed in place), fill the adapter with noise and save it."""
    peft.get_peft_model(model, peft.LoraConfig(**config)).save_pretrained(directory)
    path, generator = directory / "adapter_model.safetensors", torch.Generator().manual_seed(seed)
    noise = {}
    for name, tensor in sorted(load_file(path).items()):
        if name.endswith(".base_layer.weight"):
            noise[name] = tensor  # a copy of the base model's
            continue
        noise[name] = torch.randn(tensor.shape, generator=generator) * scale
        if "norm" in name.lower() and name.endswith("weight"):
            noise[name] += 1.0
    for name in noise:  # what PEFT writes twice stays the same
        noise[name] = noise[name.replace(".modules_to_save.", ".")]
    save_file(noise, path)
    return directory


def under(model: Any, directory: Path) -> Any:
    """Return `model` with the adapter, as PEFT loads it; the model is changed in place."""
    return peft.PeftModel.from_pretrained(model, str(directory)).eval()


def write_adapter(directory: Path, rank: int, alpha: float, pairs: Pairs) -> Path:
    """Write an adapter (module → A and B) in PEFT's files, for modules that no library class has."""
    directory.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(pairs)}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for module, (a, b) in pairs.items():
        name = f"base_model.model.{module}"
        tensors |= {f"{name}.lora_A.weight": a.clone(), f"{name}.lora_B.weight": b.clone()}
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory
