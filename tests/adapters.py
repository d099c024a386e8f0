"""Random PEFT adapters, written by `peft` itself; B is not zero, as it is at the start of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file


def make_adapter(model: Any, directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Wrap `model` (changed in place), fill the adapter with noise and save it."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    wrapped.save_pretrained(directory)
    path = directory / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    noise = {}
    for name in sorted(tensors):
        noise[name] = torch.randn(tensors[name].shape, generator=generator) * 0.2
        if "norm" in name.lower() and name.endswith("weight"):
            noise[name] += 1.0
    for name in noise:  # what PEFT writes twice stays the same
        plain = name.replace(".modules_to_save.", ".")
        noise[name] = noise[plain]
    save_file(noise, path)
    return directory


def under(model: Any, directory: Path) -> Any:
    """`model` with the adapter, as PEFT loads it; the model itself is changed in place."""
    return peft.PeftModel.from_pretrained(model, str(directory)).eval()
