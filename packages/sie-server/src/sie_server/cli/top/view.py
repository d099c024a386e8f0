"""What `sie-server top` shows: sections of rows, as tables in a terminal or as lines for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sie_server.cli.top.samples import Between
from sie_server.logs import escaped

STAGES = ("tokenization", "queue", "inference")
MIB = 2**20
NONE = "-"


@dataclass(frozen=True)
class Section:
    """A table; the first column has names, all others are figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def sections(between: Between, models: list[dict[str, Any]]) -> list[Section]:
    """Return everything that is shown; `models` are those of `GET /v1/models`."""
    return [_server(between), _routes(between), _models(between, models), _errors(between)]


def _server(between: Between) -> Section:
    now = between.now
    hits, misses = (f"sie_document_cache_{name}_total" for name in ("hits", "misses"))
    memory, budget = now.sum("sie_model_memory_bytes") / MIB, now.sum("sie_memory_budget_bytes") / MIB
    devices = max(1, len(now.samples.get("sie_memory_budget_bytes", ())))  # one per process that runs models
    rows = [
        ("version", ", ".join(now.values_of("sie_build_info", "version"))),
        ("requests/s", number(between.rate("sie_requests_total"))),
        ("tokens/s", number(between.rate("sie_tokens_total"))),
        ("in flight", f"{now.sum('sie_requests_in_flight'):,.0f}"),
        ("queue", f"{number(now.sum('sie_queue_seconds'))} s"),
        ("queued tokens", f"{now.sum('sie_queue_tokens'):,.0f}"),
        ("device busy", percent(between.rate("sie_device_busy_seconds_total") / devices)),
        ("batch fill", percent(between.mean("sie_batch_fill_ratio"))),
        ("memory of models", f"{memory:.0f} of {budget:.0f} MiB"),
        ("cache hits", percent(between.ratio(hits, [hits, misses]))),
    ]
    return Section("server", ("figure", "value"), rows)


def _routes(between: Between) -> Section:
    rows = []
    for route in between.now.values_of("sie_requests_total", "route"):
        quantiles = [between.quantile(share, "sie_request_seconds", route=route) for share in (0.5, 0.95)]
        stages = [between.quantile(0.95, "sie_stage_seconds", route=route, stage=stage) for stage in STAGES]
        cells = [
            number(between.rate("sie_requests_total", route=route)),
            *map(duration, [*quantiles, *stages]),
        ]
        rows.append((route, *cells))
    return Section(
        "routes", ("route", "requests/s", "p50", "p95", *(f"{stage} p95" for stage in STAGES)), rows
    )


def _models(between: Between, models: list[dict[str, Any]]) -> Section:
    rows = []
    for info in models:
        if info["state"] == "available":
            continue
        name = str(info["name"])
        rows.append(
            (
                name,
                str(info["state"]),
                f"{info['memory_bytes'] / MIB:.0f} MiB",
                number(between.rate("sie_tokens_total", model=name)),
                str(info["last_error"] or NONE),
            )
        )
    return Section("models", ("model", "state", "memory", "tokens/s", "last error"), rows)


def _errors(between: Between) -> Section:
    now = between.now
    totals = {
        code: now.sum("sie_errors_total", code=code) for code in now.values_of("sie_errors_total", "code")
    }
    rows = [
        (code, number(between.rate("sie_errors_total", code=code)), f"{total:,.0f}")
        for code, total in totals.items()
        if total
    ]
    return Section("errors", ("code", "errors/s", "since the start"), rows)


def number(value: float) -> str:
    """Return a number, small ones with decimals."""
    decimals = 0 if value == 0 or value >= 100 else 1 if value >= 1 else 2
    return f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return NONE if share is None else f"{share:.0%}"


def duration(seconds: float | None) -> str:
    """Return seconds in a readable unit."""
    if seconds is None:
        return NONE
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def tables(found: Sequence[Section], status: str) -> RenderableType:
    """Return the sections for a terminal, with a line on top."""
    parts: list[RenderableType] = [Text(escaped(status), style="bold", overflow="ellipsis", no_wrap=True)]
    for section in found:
        if section.rows:
            parts.append(Text())
            parts.append(_table(section))
    return Group(*parts)


def _table(section: Section) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for place, name in enumerate(section.header):
        is_figure = place > 0 and name not in ("state", "last error", "value")
        table.add_column(
            Text(name), justify="right" if is_figure else "left", overflow="ellipsis", no_wrap=True
        )
    for row in section.rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    return table


def lines(found: Sequence[Section]) -> str:
    """Return the sections as lines for scripts: the section and the cells of a row, separated by tabs."""
    rows = [(section.title, *row) for section in found for row in section.rows]
    return "".join("\t".join(map(escaped, row)) + "\n" for row in rows)
