"""The description of a cascade, made of those of its stages."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sie_server.catalog import ModelConfig, profile_names
from sie_server.wire import ModelInfo, ModelState, StageInfo

STARTED = int(time.time())  # of the server, as `created` of every model


def cascade_info(config: ModelConfig, stages: Sequence[ModelInfo]) -> ModelInfo:
    """Describe a cascade; `stages` are the models of its stages, none if one is unknown.

    It is loaded if all of them are. Their memory counts for them alone.
    """
    cascade = config.cascade
    if cascade is None:
        raise RuntimeError(f"{config.id!r} is no cascade")
    last = stages[-1] if stages else None
    limit = last.max_sequence_length if last else None
    return ModelInfo(
        id=config.id,
        created=STARTED,
        owned_by=config.id.split("/")[0],
        root=config.id,
        max_model_len=limit,
        model_type="rerank",
        name=config.id,
        aliases=list(config.aliases),
        inputs=["text"],
        outputs=["score"],
        dims={},
        loaded=_state(config, stages) == "loaded",
        state=_state(config, stages),
        last_error=config.problem or next((one.last_error for one in stages if one.last_error), None),
        max_sequence_length=limit,
        profiles=profile_names(config.profiles),
        revision=None,
        license=cascade.license,
        description=cascade.description,
        warning="; ".join(f"{one.name}: {one.warning}" for one in stages if one.warning) or None,
        adapters=last.adapters if last else [],
        stages=[StageInfo(stage.model, stage.keep) for stage in cascade.stages],
    )


def _state(config: ModelConfig, stages: Sequence[ModelInfo]) -> ModelState:
    """Return `loaded` if all stages are loaded, else the state of the first one that is not."""
    if config.problem or not stages:
        return "failed"
    others: list[ModelState] = ["failed", "loading", "unloading", "available"]
    return next((state for state in others if any(one.state == state for one in stages)), "loaded")
