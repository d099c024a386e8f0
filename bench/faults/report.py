"""The figures of `bench.cluster_faults` as a table and as a file, which keeps those of earlier scenarios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import machine
from rich.console import Console
from rich.table import Table

FILE = Path(__file__).resolve().parent.parent / "out" / "cluster_faults.json"
console = Console(width=None if Console().is_terminal else 160, highlight=False)


def store(result: dict[str, Any]) -> None:
    """Write the figures of one scenario to the file."""
    FILE.parent.mkdir(exist_ok=True)
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    scenarios = found.get("scenarios", {}) | {result["scenario"]: result}
    FILE.write_text(json.dumps({"machine": machine.describe(), "scenarios": scenarios}, indent=1))


def table(results: list[dict[str, Any]]) -> Table:
    """Return one row a scenario."""
    made = Table("event", box=None)
    for heading in ("times", "SDK calls", "failed", "wrong", "reruns", "slowest s", "plain calls", "failed"):
        made.add_column(heading, justify="right")
    made.add_column("kinds")
    for one in results:
        sdk, plain = one["sdk"], one["plain"]
        made.add_row(
            one["scenario"],
            str(one["times"]),
            *(str(sdk[name]) for name in ("calls", "failed", "wrong")),
            str(one["reruns"]),
            f"{sdk['slowest_s']:.1f}",
            str(plain["calls"]),
            str(plain["failed"]),
            ", ".join(f"{count} × {kind}" for kind, count in plain["kinds"].items()),
        )
    return made
