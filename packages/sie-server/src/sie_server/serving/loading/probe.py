"""Checks of a version: before it replaces another, and after repeated failures of the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from sie_server.catalog import ModelConfig
from sie_server.engine.device import device_lost
from sie_server.engine.engine import Engine
from sie_server.engine.job import QUERY, Job, M3Scoring, ScoreTexts, Sparse
from sie_server.engine.lora.adapter import Adapter
from sie_server.errors import InferenceError, ModelLoadFailed
from sie_server.serving.device.isolation import DeviceLost

TEXTS = ["when does rain fall", "rain falls tomorrow over the harbour", "stars burn hydrogen"]


def check_outputs(model: ModelConfig, old: Engine, new: Engine) -> None:
    """Refuse a version that lacks an output of the version it replaces.

    Raises:
        ModelLoadFailed: an output is missing, or its vectors have another width than those that clients have stored.
    """
    missing = [name for name in old.spec.outputs if name not in new.spec.outputs]
    old_widths, new_widths = old.spec.dims, new.spec.dims
    if missing or any(new_widths[name] != width for name, width in old_widths.items()):
        raise ModelLoadFailed(
            f"{model.source} has the outputs {_described(new)}, the version it would replace has {_described(old)}; "
            f"unload {model.id!r} first if you want this change",
            error_class="OtherOutputs",
            permanent=True,
            attempts=1,
        )


def _described(engine: Engine) -> str:
    """The outputs of an engine, with the width of its vectors."""
    widths = engine.spec.dims
    return ", ".join(f"{name} ({widths[name]})" if name in widths else name for name in engine.spec.outputs)


def probe_jobs(engine: Engine, adapter: Adapter | None) -> list[Job]:
    """One small job for every kind of request that the model serves."""
    limit, outputs = engine.max_seq_length, engine.spec.outputs
    jobs = []
    if "score" in outputs:
        job = engine.tokenize_score(ScoreTexts(TEXTS[0], TEXTS[1:], limit), adapter=adapter)
        job.m3_scoring = M3Scoring("weighted")
        jobs.append(job)
    if vectors := tuple(name for name in outputs if name != "score"):
        jobs.append(engine.tokenize_encode(TEXTS, vectors, limit, adapter=adapter))
    return jobs


def not_finite(model: ModelConfig, adapter: Adapter | None) -> ModelLoadFailed:
    """The error for a version or adapter whose results are not finite numbers."""
    if adapter:
        source, suspects = f"the adapter {adapter.directory}", "lora_alpha and weights"
    else:
        source, suspects = model.source, "weights"
    return ModelLoadFailed(
        f"{source} returns scores or vectors that are not finite numbers; check its {suspects}",
        error_class="NotFinite",
        permanent=True,
        attempts=1,
    )


def is_finite(result: Any) -> bool:
    """True when a score, the vectors of a text or the result of a listwise block holds finite numbers only."""
    values = result.values() if isinstance(result, dict) else [result]
    return all(np.isfinite(v.values if isinstance(v, Sparse) else v).all() for v in values)


def check_device(engine: Engine) -> None:
    """Run a small request through a model that has passed its checks before; on the device thread.

    Raises:
        InferenceError: the pass fails, or its results are not finite numbers.
        DeviceLost: every later pass would fail as well.
    """
    limit, outputs = engine.max_seq_length, engine.spec.outputs
    try:
        if "score" in outputs:
            job = engine.tokenize_plain(ScoreTexts(TEXTS[0], TEXTS[1:], limit))  # without cached documents
            job.m3_scoring = M3Scoring("weighted")
        else:
            job = engine.tokenize_encode(TEXTS, tuple(outputs[:1]), limit)
        pairs = list(zip(job.work, engine.run(job.work), strict=True))
    except Exception as error:
        if device_lost(error):
            raise DeviceLost(str(error)) from error
        raise InferenceError(f"a forward pass failed: {type(error).__name__}: {error}") from error
    if not all(is_finite(result) for work, result in pairs if work.index != QUERY):
        raise InferenceError("the results of a known text are not finite numbers")
