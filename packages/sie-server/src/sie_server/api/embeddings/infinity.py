"""infinity's list of models. Source: its openapi.json (https://github.com/michaelfeil/infinity).

Its clients require `stats`, which counts the batches of infinity's own queue. This server has one queue for all models,
whose figures are in /metrics, so these are zero.
"""

from __future__ import annotations

from sie_server.api.dialects.dialect import Json
from sie_server.wire import ModelInfo

MODELS = ("/models", "/infinity/models")
STATS = {"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0, "batch_size": 0}


def models(served: list[ModelInfo]) -> Json:
    """Return the models that are served."""
    return {"object": "list", "data": [_entry(info) for info in served]}


def _entry(info: ModelInfo) -> Json:
    capabilities = (["rerank"] if "score" in info.outputs else []) + (["embed"] if info.dims else [])
    return {
        "id": info.id,
        "object": "model",
        "owned_by": "infinity",  # the only value that its client knows
        "created": info.created,
        "backend": "torch",
        "capabilities": capabilities,
        "stats": STATS,
    }
