"""Decoders as embedding models: how they are distinguished from rerankers, and which of them are refused.

Qwen3-Embedding has the architecture `Qwen3ForCausalLM`, like the rerankers of its family; only its `modules.json` marks
it as an embedding model. The checkpoints refused here would otherwise yield plausible but wrong vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.causal import TEMPLATE_FILE
from sie_server.models.spec import UnsupportedCheckpoint, read_json


def is_embedder(directory: Path) -> bool:
    """Return True when `modules.json` has a Pooling and the operator has not added a reranker's template."""
    if (directory / TEMPLATE_FILE).exists():
        return False
    path = directory / "modules.json"
    modules = read_json(path, list) if path.exists() else []
    return any(str(m.get("type")).rsplit(".", 1)[-1] == "Pooling" for m in modules if isinstance(m, dict))


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
