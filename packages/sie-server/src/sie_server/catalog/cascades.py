"""Cascades among the known models: whether each stage names a model that can score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sie_server.catalog.entries import ModelConfig, id_of
from sie_server.config import suggest
from sie_server.errors import shown


def checked(models: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
    """Return the models; a cascade that cannot work has its problem in `problem`, and is not served."""
    return {
        name: replace(model, problem=_problem(model, models)) if model.cascade else model
        for name, model in models.items()
    }


def _problem(model: ModelConfig, models: Mapping[str, ModelConfig]) -> str | None:
    for place, stage in enumerate(model.stages):
        if problem := _stage_problem(model, stage.model, models):
            return f"{problem} - at `$.stages[{place}].model`"
    return None


def _stage_problem(model: ModelConfig, name: str, models: Mapping[str, ModelConfig]) -> str | None:
    found = models.get(id_of(name, models))
    if found is None:
        base, _, adapter = name.rpartition(":")
        if adapter and id_of(base, models) in models:
            return f"{shown(name)} names an adapter; write model: {base} and options: {{lora: {adapter}}}"
        hint = suggest(name, list(models))
        return f"model {shown(name)} is not known here{hint or '; `sie-server models` lists the known ones'}"
    if found.id == model.id:
        return f"the cascade names itself, {shown(name)}; name another model"
    if found.cascade:
        return f"{shown(name)} is a cascade too; name its models as stages instead"
    if found.entry and found.entry.outputs and "score" not in found.entry.outputs:
        outputs = ", ".join(found.entry.outputs)
        return f"{shown(name)} has no output 'score', only {outputs}; name a reranker"
    return None
