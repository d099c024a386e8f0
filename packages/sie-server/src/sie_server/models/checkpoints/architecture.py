"""The architecture that a directory is read as, and decoders that are refused as embedding models.

Qwen3-Embedding has the architecture `Qwen3ForCausalLM`, like the rerankers of its family; only its `modules.json` marks
it as an embedding model. The checkpoints refused here would otherwise yield plausible but wrong vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.errors import shown
from sie_server.models.checkpoints.causal import TEMPLATE_FILE
from sie_server.models.registry import ARCHITECTURES, architecture_with, bare_architecture
from sie_server.models.settings.purposes import classes_of
from sie_server.models.settings.sentence import sentence_settings
from sie_server.models.spec import UnsupportedCheckpoint, read_json


def read_architecture(directory: Path, config: dict[str, Any]) -> str:
    """Return the first of `architectures`, as `models.registry` lists it.

    A repository with its own code may use the name of a library's class. Its configuration class distinguishes it, and
    the registry lists that class in parentheses. The code is never loaded. Without modules.json,
    `Family.without_modules` replaces the name.

    Where modules.json adds the head, sentence-transformers takes the bare class of `model_type` (`AutoModel`),
    regardless of the class that the checkpoint was saved from; for SPLADE, its masked language model, and for the
    module Transformer alone, the class of its task.
    """
    if not config.get("architectures") and not is_headless(directory) and not _head(directory):
        raise UnsupportedCheckpoint(_without_class(config))
    name = str((config.get("architectures") or ["(none)"])[0])
    if name == "HF_ColBERT":
        name = f"{name}/{config.get('model_type')}"
    own = str((config.get("auto_map") or {}).get("AutoConfig", "")).rsplit(".", 1)[-1]
    variant = f"{name} ({own})"
    name = variant if variant in ARCHITECTURES else name
    family = ARCHITECTURES.get(name)
    if family and family.without_modules and not (directory / "modules.json").exists():
        return family.without_modules
    if own:
        return name
    model_type = str(config.get("model_type"))
    if is_headless(directory):
        return bare_architecture(model_type) or name
    head = _head(directory)
    return (architecture_with(head, model_type) if head else None) or name


def _without_class(config: dict[str, Any]) -> str:
    """Return the message about a config.json without `architectures`."""
    kind = config.get("model_type")
    if kind is None:
        return "config.json has neither `architectures` nor `model_type`; it is not the configuration of a transformer"
    classes = classes_of(kind, ARCHITECTURES)
    advice = (
        f'add "architectures": ["{classes[0]}"]' + "".join(f" or {name}" for name in classes[1:])
        if classes
        else "add the class that the weights were saved from"
    )
    return f"config.json has no `architectures`; for the model_type {shown(kind)}, {advice}"


def _head(directory: Path) -> str | None:
    """Return the end of the class that modules.json needs; None: any class."""
    kinds = _kinds(directory)
    if "SpladePooling" in kinds:
        return "ForMaskedLM"
    task = sentence_settings(directory).get("transformer_task")
    return (
        "ForSequenceClassification"
        if kinds == {"Transformer"} and task == "sequence-classification"
        else None
    )


def is_headless(directory: Path) -> bool:
    """Return True when modules.json adds the head to a bare model, and the operator has not added a template."""
    kinds = set() if (directory / TEMPLATE_FILE).exists() else _kinds(directory)
    return bool(kinds & {"Pooling", "Dense", "MultiVectorMask"}) and not kinds & {
        "SpladePooling",
        "LogitScore",
    }


def _kinds(directory: Path) -> set[str]:
    """Return the kinds of the modules in modules.json; empty without the file."""
    path = directory / "modules.json"
    modules = [m for m in read_json(path, list) if isinstance(m, dict)] if path.exists() else []
    return {str(module.get("type")).rsplit(".", 1)[-1] for module in modules}


def check_embedder(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a decoder whose vectors depend on more than its weights and a text.

    Raises:
        UnsupportedCheckpoint: the repository has its own model class (gte-Qwen2 changes the attention in it), or texts
            are rendered by a chat template first.
    """
    own = (config.get("auto_map") or {}).get("AutoModel")
    if own:
        raise UnsupportedCheckpoint(
            f"config.json names the repository's own model class ({own}), whose code is never run and may differ from "
            "the architecture; decoders with their own model class are not supported as embedding models"
        )
    path = directory / "sentence_bert_config.json"
    modalities = (read_json(path).get("modality_config") or {}) if path.exists() else {}
    if "message" in modalities:
        raise UnsupportedCheckpoint(
            "sentence_bert_config.json renders texts by a chat template (modality_config: message), which is "
            "supported for rerankers but not for embedding models"
        )
