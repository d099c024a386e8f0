"""`calibrate`: scores judged pairs with a model, fits a calibration, and measures it on pairs it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sie_server.catalog import CatalogEntry, id_of, known_models
from sie_server.config import ServerConfig
from sie_server.eval.calibration.entry import as_yaml, described, entry_of
from sie_server.eval.calibration.fit import Method, Quality, fit, held_out, probabilities, quality
from sie_server.eval.calibration.pairs import Floats, Pairs, Unjudged, judged_pairs
from sie_server.eval.calibration.threshold import Goal, Threshold, threshold_for
from sie_server.eval.data.collection import Collection
from sie_server.eval.evaluation import Plan, candidates_of, loaded, scored_by
from sie_server.eval.first_stage import ENCODE
from sie_server.eval.systems import System, configured, parse_systems
from sie_server.offline.errors import OfflineError, needed
from sie_server.offline.run import run
from sie_server.offline.scorers import LocalScorer
from sie_server.serving.activation import activate
from sie_server.wire import ModelInfo

RAW = {"normalize": "none"}
WIDE = 0.2  # of an interval


class CalibrationReport(msgspec.Struct, frozen=True):
    """A calibration, and its quality on held-out queries."""

    model: str
    method: Method
    pairs: int
    relevant: int
    queries: int
    folds: int
    before: Quality  # of the model's own scores: the sigmoid of logits; similarities cut to 0 … 1
    after: Quality
    threshold: Threshold | None
    entry: CatalogEntry
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it; the entry as the text of its file."""
        return {**msgspec.to_builtins(self), "entry": as_yaml(self.entry)}


@dataclass(frozen=True)
class Goals:
    """Choices of a calibration."""

    method: Method = "platt"
    folds: int = 5
    unjudged: Unjudged = "leave-out"
    goal: tuple[Goal, float] | None = None
    profile: str = "calibrated"


def calibrate(
    data: str | Path | Collection | Sequence[str | Path | Collection],
    model: str,
    goals: Goals | None = None,
    *,
    queries: int | None = None,
    qrels: str | None = None,
    config: ServerConfig | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **settings: Any,
) -> CalibrationReport:
    """Fit probabilities of relevance to a model's raw scores of judged candidates.

    Arguments as of `evaluate`; `model` is one value of `--model` without an adapter.

    Raises:
        OfflineError: data or model cannot be used. DataError is the kind for data.
    """
    goals, config = goals or Goals(), config or ServerConfig()
    for module in ("sklearn", "ir_measures"):
        needed(module)
    (system,) = parse_systems([model], config.models_dir)
    if system.model != system.configured.partition("=")[0]:
        raise OfflineError("a calibration is that of a model without an adapter; omit the adapter")
    if system.dense:
        raise OfflineError(f"{model}: a calibration is that of scores, not of vectors; omit {ENCODE}")
    _refuse_cascade(system.model, config.models_dir)
    plan = Plan(
        collections=[each.sample(queries, seed) for each in loaded(data, qrels)],
        systems=[replace(system, options={**system.options, **RAW})],
        seed=seed,
        out=Path(out) if out is not None else None,
        **settings,
    )
    config = msgspec.structs.replace(config, model=configured([system.configured]))
    return run(_calibrate(plan, system, goals, config))


def _refuse_cascade(name: str, models_dir: str | None) -> None:
    known = known_models((), models_dir, report=False)
    if (found := known.get(id_of(name, known))) and found.stages:
        raise OfflineError(
            f"{name} is a cascade, whose scores are those of its last stage; calibrate {found.stages[-1].model}"
        )


async def _calibrate(plan: Plan, system: System, goals: Goals, config: ServerConfig) -> CalibrationReport:
    scorer = LocalScorer(config)
    try:
        raw_system = plan.systems[0]
        plan.reporter.note(f"loading {system.name}")
        about = await scorer.identity(raw_system.model, raw_system.options)
        scored = []
        for each in plan.collections:
            found = await candidates_of(plan, each, scorer)
            answers = await scored_by(plan, raw_system, each, found, scorer, about)
            scored.append((each, found, answers.answers))
        info = await scorer.info(system.model)
    finally:
        await scorer.close()
    pairs = judged_pairs(scored, goals.unjudged)
    return _report(plan, system, goals, config, pairs, about["score_type"] == "logit", info)


def _report(
    plan: Plan,
    system: System,
    goals: Goals,
    config: ServerConfig,
    pairs: Pairs,
    is_logit: bool,
    info: ModelInfo,
) -> CalibrationReport:
    predicted = held_out(pairs, goals.method, goals.folds, plan.seed)
    threshold = threshold_for(*goals.goal, predicted, pairs, plan.seed) if goals.goal else None
    known = known_models(config.model, config.models_dir, report=False)
    model = next(each for each in known.values() if system.model in (each.id, *each.aliases))
    profile = system.options.get("profile")
    options = {}
    if profile is not None and profile in model.profiles:
        options = {
            key: value
            for key, value in msgspec.to_builtins(model.profiles[profile]).items()
            if value is not None
        }
    calibration = msgspec.structs.replace(
        fit(pairs, goals.method), options=options, note=described(pairs, goals.method)
    )
    notes = [note for each in plan.collections for note in each.notes]
    return CalibrationReport(
        model=system.name,
        method=goals.method,
        pairs=len(pairs),
        relevant=int(pairs.relevant.sum()),
        queries=len(np.unique(pairs.query)),
        folds=goals.folds,
        before=quality(own_scores(pairs.raw, is_logit), pairs.relevant),
        after=quality(predicted, pairs.relevant),
        threshold=threshold,
        entry=entry_of(model, info, goals.profile, calibration, config.models_dir),
        notes=[*notes, *_doubts(threshold)],
    )


def own_scores(raw: Floats, is_logit: bool) -> Floats:
    """Return the numbers that a caller takes for probabilities without a calibration."""
    if is_logit:
        return np.array([activate(float(value), "sigmoid") for value in raw])
    return np.clip(raw, 0.0, 1.0)


def _doubts(threshold: Threshold | None) -> list[str]:
    if threshold is None:
        return []
    shares = (("precision", threshold.precision), ("recall", threshold.recall))
    return [
        f"the {name} at the threshold is uncertain by {each.high - each.low:.2f}; judge more queries"
        for name, each in shares
        if each.high - each.low > WIDE
    ]


__all__ = ["CalibrationReport", "Goals", "calibrate", "probabilities"]
