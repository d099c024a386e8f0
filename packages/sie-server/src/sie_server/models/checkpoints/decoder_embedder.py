"""Decoders that give vectors: how such a checkpoint is told from a reranker, and what of it is not served.

Qwen3-Embedding calls itself `Qwen3ForCausalLM`, as the rerankers of its family do; only `modules.json` says that it is
an embedder. Everything refused here would otherwise give vectors that only look right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sie_server.models.checkpoints.causal import TEMPLATE_FILE
from sie_server.models.spec import UnsupportedCheckpoint, read_json


def is_embedder(directory: Path) -> bool:
    """True when `modules.json` pools hidden states into a vector, and the operator has not made it a reranker."""
    if (directory / TEMPLATE_FILE).exists():
        return False
    path = directory / "modules.json"
    modules = read_json(path, list) if path.exists() else []
    return any(str(m.get("type")).rsplit(".", 1)[-1] == "Pooling" for m in modules if isinstance(m, dict))


def check_embedder(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a decoder whose vectors depend on more than its weights and a text.

    Raises:
        UnsupportedCheckpoint: a model class of its own (gte-Qwen2 changes the attention there), or texts that are
            rendered by a chat template first.
    """
    own = (config.get("auto_map") or {}).get("AutoModel")
    if own:
        raise UnsupportedCheckpoint(
            f"config.json names a model class of the repository's own ({own}), which is never run and may compute "
            "something else than the architecture does; decoders as embedders are served without one"
        )
    path = directory / "sentence_bert_config.json"
    modalities = (read_json(path).get("modality_config") or {}) if path.exists() else {}
    if "message" in modalities:
        raise UnsupportedCheckpoint(
            "sentence_bert_config.json renders texts by a chat template (modality_config: message), which is served "
            "for rerankers and not for embedders"
        )
