"""The figures of a load test: rows, Markdown, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from sie_server import __version__
from sie_server.loadtest.probe import Endpoint
from sie_server.loadtest.run import Outcome

HEADER = ("clients", "documents", "requests", "failed", "pairs/s", "p50 ms", "p95 ms", "p99 ms", "max ms")
PERCENTILES = (50, 95, 99)


def percentile(seconds: Sequence[float], percent: int) -> float | None:
    """Return a percentile in milliseconds; None without values."""
    if len(seconds) < 2:
        return seconds[0] * 1e3 if seconds else None
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1] * 1e3


def row(outcome: Outcome) -> dict[str, Any]:
    """Return the figures of a phase; latencies in ms, None without answers."""
    seconds = outcome.latencies
    return {
        "clients": outcome.plan.clients,
        "documents": outcome.plan.documents,
        "requests": len(seconds),
        "failed": outcome.failures.total(),
        "pairs_per_s": round(outcome.pairs_per_second, 1),
        **{f"p{p}_ms": _rounded(percentile(seconds, p)) for p in PERCENTILES},
        "max_ms": _rounded(max(seconds) * 1e3 if seconds else None),
        "failures": dict(outcome.failures),
        "details": outcome.details,
    }


def cells(outcome: Outcome) -> list[str]:
    """Return one text per column of `HEADER`."""
    figures = list(row(outcome).values())[: len(HEADER)]
    return ["–" if value is None else f"{value:,}" for value in figures]


def as_dict(endpoint: Endpoint, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the report as values for JSON."""
    return {
        "endpoint": endpoint.target.shown,
        "dialect": endpoint.dialect.name,
        "path": endpoint.path,
        "model": endpoint.model or None,
        "version": __version__,
        "phases": [row(outcome) for outcome in outcomes],
    }


def title(endpoint: Endpoint) -> str:
    """Name the endpoint, the dialect and the model."""
    model = f", model {endpoint.model}" if endpoint.model else ""
    return f"{endpoint.target.shown}, dialect {endpoint.dialect.name}{model}"


def markdown(endpoint: Endpoint, outcomes: Sequence[Outcome]) -> str:
    """Return the report as a table with its title."""
    lines = [HEADER, ["---:"] * len(HEADER), *(cells(outcome) for outcome in outcomes)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n- {note}" for note in failures(outcomes))
    return f"{title(endpoint)}\n\n{table}\n" + (f"{notes}\n" if notes else "")


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line for each kind of failure of each phase."""
    return [
        f"{outcome.plan.clients} clients: {count} × {outcome.details.get(kind, kind)}"
        for outcome in outcomes
        for kind, count in outcome.failures.most_common()
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
