"""One description of a model from those of all replicas."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from msgspec import structs

from sie_server.catalog import ModelConfig, id_of, profile_names
from sie_server.serving.lifecycle.cascades import cascade_info
from sie_server.wire import ModelInfo

STARTED = int(time.time())
FURTHEST = ("loaded", "loading", "unloading", "failed", "available")


def merged_infos(lists: Iterable[list[ModelInfo]]) -> dict[str, ModelInfo]:
    """Return the models of all replicas by id: each as the replica that got furthest with it, with all its memory."""
    found: dict[str, ModelInfo] = {}
    for infos in lists:
        for info in infos:
            found[info.name] = _further(found[info.name], info) if info.name in found else info
    return found


def _further(one: ModelInfo, other: ModelInfo) -> ModelInfo:
    first, second = sorted((one, other), key=lambda info: FURTHEST.index(info.state))
    adapters = {adapter.name: adapter for adapter in (*second.adapters, *first.adapters)}
    return structs.replace(
        first,
        memory_bytes=one.memory_bytes + other.memory_bytes,
        last_error=first.last_error or second.last_error,
        adapters=list(adapters.values()),
    )


def unloaded_info(model: ModelConfig, known: Mapping[str, ModelConfig | None]) -> ModelInfo:
    """Describe a model that no running replica knows, from the catalog. `known` has the stages of a cascade."""
    if model.cascade:
        models = {name: one for name, one in known.items() if one}
        stages = [models.get(id_of(stage.model, models)) for stage in model.stages]
        infos = [unloaded_info(one, {}) for one in stages if one and not one.cascade]
        return cascade_info(model, infos if len(infos) == len(stages) else [])
    entry = model.entry
    outputs = entry.outputs if entry else []
    return ModelInfo(
        id=model.id,
        created=STARTED,
        owned_by=model.id.split("/")[0],
        root=model.id,
        max_model_len=entry.max_seq_length if entry else None,
        model_type=("rerank" if "score" in outputs else "embedding") if outputs else None,
        last_error=None,
        profiles=profile_names(model.profiles),
        name=model.id,
        aliases=list(model.aliases),
        inputs=["text"],
        outputs=outputs,
        dims=entry.dims if entry else {},
        loaded=False,
        state="available",
        max_sequence_length=entry.max_seq_length if entry else None,
        revision=model.revision,
        source=model.shown_source,
    )
