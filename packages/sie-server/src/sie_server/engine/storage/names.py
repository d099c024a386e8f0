"""Why tensor names of a checkpoint do not fit its architecture, and the next step, for refusals."""

from __future__ import annotations

from collections.abc import Collection

from sie_server.errors import cut
from sie_server.models.settings.quantised import quantised

# parts of names that wrappers add anywhere: DataParallel, torch.compile, FSDP, activation checkpointing
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def misnamed(wanted: str | None, names: Collection[str]) -> str | None:
    """Return why the tensor `wanted` is missing, or tensors are left over, if the names show it; None: they do not."""
    if merged := next((name for name in names if ".base_layer." in f".{name}" or ".lora_A." in name), None):
        return (
            f"{cut(merged, 200)!r} shows a LoRA adapter that was saved inside the model; call merge_and_unload(), and "
            "save the result"
        )
    if reason := quantised(names):
        return reason
    if wanted is None:
        return None
    if any(wanted == unwrapped(name) for name in names):
        found = next(name for name in names if wanted == unwrapped(name))
        return (
            f"it has {cut(found, 200)!r}: the checkpoint was saved from a wrapper ({cut(_added(found))}); save the "
            "model inside the wrapper with save_pretrained, or remove this part of every name"
        )
    ending = next((name for name in names if name.endswith(f".{wanted}")), None)
    if ending is None:
        return None
    prefix = ending.removesuffix(wanted)
    count = sum(name.startswith(prefix) for name in names)
    return (
        f"{count} of {len(names)} names begin with {cut(prefix, 200)!r}: the checkpoint was saved from a class around "
        "the model; save the model inside it with save_pretrained, or remove the prefix from every name"
    )


def unwrapped(name: str) -> str:
    """Return a name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _added(name: str) -> str:
    return ", ".join(dict.fromkeys(part for part in name.split(".") if part in WRAPPERS))
