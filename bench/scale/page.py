"""The recorded results, and the page that has their tables: docs/scale.md."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.scale import tables
from bench.scale.scenarios import Latencies, Scenario
from bench.scale.tables import Simulated

HERE = Path(__file__).resolve().parent
SIMULATED, MEASURED = HERE / "simulated.json", HERE / "ingress_cost.json"
VALIDATED = HERE / "validation.json"
PAGE = HERE.parents[1] / "docs" / "scale.md"
PLOT = PAGE.with_suffix(".svg")
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load_simulated() -> Simulated:
    report = json.loads(SIMULATED.read_text(encoding="utf-8"))
    results = {_part(Scenario, row): _part(Latencies, row) for row in report["rows"]}
    return Simulated(report["requests"], report["seed"], results)


def _part(kind: type[Any], row: dict[str, Any]) -> Any:
    return kind(**{field.name: row[field.name] for field in fields(kind)})


def blocks() -> dict[str, str]:
    """Return all generated blocks of the page by name."""
    simulated = load_simulated()
    results = simulated.results
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    return {
        "capacity": tables.capacity_table(results),
        "prices": tables.price_table(),
        "planning": tables.planning_table(results),
        "run": tables.run_note(simulated),
        "ready": tables.ready_note(measured),
        "latency": tables.latency_table(results),
        "cost": tables.cost_table(measured),
        "bottlenecks": tables.bottleneck_table(measured),
        "validation": tables.validation_table(json.loads(VALIDATED.read_text(encoding="utf-8"))),
        **tables.study_tables(results),
    }


def render(page: str) -> str:
    """Return the page with current blocks.

    Raises:
        KeyError: the page has a block of another name.
    """
    current = blocks()
    return BLOCK.sub(lambda match: f"{match[1]}\n{current[match[2]]}\n{match[3]}", page)


def write_page() -> None:
    """Renew the generated blocks of the page from the recorded results."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_page()
