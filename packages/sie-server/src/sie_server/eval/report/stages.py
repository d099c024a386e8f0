"""The cost of a cascade: what each stage reads, and cascade and stages side by side where both were evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from sie_server.eval.results import ModelResult

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def stages_of(cascade: ModelResult) -> Table:
    """Return header and rows of the documents and tokens that each stage reads per query."""
    total = max(sum(stage.tokens for stage in cascade.stages), 1)
    rows: list[tuple[str, ...]] = [
        (
            str(place),
            stage.model,
            f"{stage.documents:.1f}",
            f"{stage.tokens:,.0f}",
            f"{stage.tokens / total:.0%}",
        )
        for place, stage in enumerate(cascade.stages, 1)
    ]
    header = ("stage", "model", "documents per query", "tokens per query", "share of tokens")
    return header, rows


def stage_rows(cascade: ModelResult, models: Sequence[ModelResult]) -> Table:
    """Return header and rows of the cascade and of its models alone. A model that was not evaluated has no figures."""
    metric, known = cascade.changes[0].metric, {model.model: model for model in models}
    header = ("", metric, "p50", "of the cascade's p50", "tokens per query")
    alone = list(dict.fromkeys(stage.model for stage in cascade.stages))
    rows = [_row(cascade.model, cascade, cascade)]
    rows += [_row(f"{name} alone", known.get(name), cascade) for name in alone]
    return header, rows


def _row(label: str, model: ModelResult | None, cascade: ModelResult) -> tuple[str, ...]:
    if model is None:
        return (label, "not evaluated", "–", "–", "–")
    ratio = model.latency_p50_ms / max(cascade.latency_p50_ms, 1e-9)
    figures = (f"{model.changes[0].after:.4f}", f"{model.latency_p50_ms:.1f} ms", f"{ratio:.2f} ×")
    return (label, *figures, f"{model.tokens:,.0f}")
