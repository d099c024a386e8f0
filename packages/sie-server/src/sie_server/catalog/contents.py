"""The content of a directory or file that is no checkpoint, and the next step, for refusals.

A served checkpoint has config.json, a tokenizer, and weights in model.safetensors or pytorch_model.bin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sie_server.errors import cut, shown
from sie_server.files import entries, read_json

MOST = 200  # entries of a directory that are looked at
# by the end of a file's name
FORMATS = {
    ".gguf": "GGUF, the format of llama.cpp",
    ".ggml": "GGML, the format of llama.cpp",
    ".onnx": "ONNX",
    "openvino_model.xml": "OpenVINO",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".tflite": "TensorFlow Lite",
    ".mlpackage": "Core ML",
    ".nemo": "NeMo",
    ".ckpt": "a training checkpoint",
    ".pth": "PyTorch under another name",
    ".pt": "PyTorch under another name",
    ".tar.gz": "an archive: unpack it first",
    ".zip": "an archive: unpack it first",
    ".incomplete": "a download that did not finish",
}
VARIANT = re.compile(r"(model|pytorch_model)\.(\w+)\.(safetensors|bin)$")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.(safetensors|bin)$")
# modules of sentence-transformers that no transformer precedes, by class name
WITHOUT_TRANSFORMER = {
    "StaticEmbedding": "a static model: one vector per token, without a transformer",
    "SparseStaticEmbedding": "an inference-free sparse model: one weight per token, without a transformer",
    "IDF": "an inference-free sparse model: one weight per token, without a transformer",
    "Router": "a model with a module of its own for queries and for documents",
    "Asym": "a model with a module of its own for queries and for documents",
    "BoW": "a bag-of-words model, without a transformer",
    "WordEmbeddings": "a word-embedding model (such as GloVe), without a transformer",
    "CLIPModel": "a CLIP model for images and texts",
    "CNN": "a convolutional model, without a transformer",
    "LSTM": "a recurrent model, without a transformer",
}


def instead_of_config(directory: Path) -> str:
    """Return what a directory without config.json is, and the next step."""
    names = _names(directory)
    if "adapter_config.json" in names:
        return _adapter(directory)
    if "model_index.json" in names:
        return "it is a diffusers pipeline, which generates images and is not served"
    if "modules.json" in names:
        return _modules(directory)
    if {"snapshots", "refs"} <= names:
        return f"it is a folder of the hub's cache; name the model by its hub id, or name {directory}/snapshots/COMMIT"
    if "params.json" in names:
        return "it has params.json, the format of the model's authors; take the repository for transformers"
    inner = sorted(name for name in names if _exists(directory / name / "config.json"))
    if inner:
        return f"{_listed(inner)} {'has' if len(inner) == 1 else 'have'} one; name that directory"
    return instead_of_weights(directory)


def instead_of_weights(directory: Path) -> str:
    """Return what a directory without weights has, and the next step."""
    names = _names(directory) | {f"onnx/{name}" for name in _names(directory / "onnx")}
    if "adapter_config.json" in names:
        return _adapter(directory)
    if variants := sorted(name for name in names if VARIANT.search(name)):
        plain = VARIANT.sub(r"\1.\3", variants[0])
        return f"it has {_listed(variants)}, a variant that transformers reads only by its name; rename it to {plain}"
    if shards := sorted(name for name in names if SHARD.search(name)):
        ending = shards[0].rsplit(".", 1)[-1]
        index = "model.safetensors.index.json" if ending == "safetensors" else "pytorch_model.bin.index.json"
        return f"it has {_listed(shards)} without {index}, which lists the shards; download that file too"
    found = [(name, kind) for name in sorted(names) for end, kind in FORMATS.items() if name.endswith(end)]
    if found:
        kinds = ", ".join(dict.fromkeys(f"{cut(name)} ({kind})" for name, kind in found[:3]))
        return (
            f"it has {kinds}, which is not read; take the original repository with model.safetensors, or save the "
            "model with save_pretrained"
        )
    if others := sorted(name for name in names if name.endswith((".safetensors", ".bin"))):
        return f"it has {_listed(others)}; rename the weights to model.safetensors or pytorch_model.bin"
    return (
        f"it has {_listed(sorted(names))}; the download may be incomplete: download it again"
        if names
        else ("it is empty; put a checkpoint into it")
    )


def instead_of_directory(path: Path) -> str:
    """Return what a file is that was named where a model's directory is expected."""
    kind = next((kind for end, kind in FORMATS.items() if path.name.lower().endswith(end)), None)
    if kind:
        return (
            f"a file ({kind}), which is not served; a model is a directory with config.json, tokenizer.json and "
            "model.safetensors: take the repository that the file was made from"
        )
    return f"a file; a model is a directory with config.json, tokenizer and weights: name {path.parent}"


def _adapter(directory: Path) -> str:
    config = _json(directory / "adapter_config.json")
    fields: dict[str, Any] = config if isinstance(config, dict) else {}
    kind, base = str(fields.get("peft_type") or "LORA"), str(fields.get("base_model_name_or_path") or "BASE")
    if kind.upper() != "LORA":
        return (
            f"it is a PEFT adapter of the type {shown(kind)} for {cut(base, 200)}; only LoRA adapters are served, "
            "so merge it into its base model and serve the result"
        )
    return (
        f"it is a LoRA adapter of {cut(base, 200)}, not a model; serve it with "
        f"--model {cut(base, 200)} --adapter {cut(base, 200)}:NAME={directory}"
    )


def _modules(directory: Path) -> str:
    content = _json(directory / "modules.json")
    modules = [m for m in content if isinstance(m, dict)] if isinstance(content, list) else []
    kinds = [str(module.get("type")).rsplit(".", 1)[-1] for module in modules]
    if named := module_without_transformer(kinds):
        return f"modules.json lists {named}, which is not served"
    place = next(
        (str(m.get("path")) for m, kind in zip(modules, kinds, strict=True) if kind == "Transformer"), ""
    )
    if place and _exists(directory / place / "config.json"):
        return (
            f"its transformer is in {cut(place)}/, the layout of sentence-transformers 0 and 1; move the files of "
            f'{cut(place)}/ one level up, and set the path of the Transformer in modules.json to ""'
        )
    return f"modules.json lists {_listed(kinds)}; the download may be incomplete: download it again"


def module_without_transformer(kinds: list[str]) -> str | None:
    """Return the first module of `kinds` (class names) that makes a model of a kind that is not served."""
    return next(
        (f"{kind}: {WITHOUT_TRANSFORMER[kind]}" for kind in kinds if kind in WITHOUT_TRANSFORMER), None
    )


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError):  # this is a hint; the refusal has another cause
        return None


def _names(directory: Path) -> set[str]:
    return set(_walk(directory))


def _walk(directory: Path) -> Iterator[str]:
    try:
        for count, entry in enumerate(entries(directory)):
            if count == MOST:
                return
            if not entry.name.startswith("."):
                yield entry.name
    except OSError:
        return


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _listed(names: list[str]) -> str:
    shown_names = ", ".join(cut(name) if name.isprintable() else shown(name) for name in names[:4])
    return shown_names + (" and others" if len(names) > 4 else "")
