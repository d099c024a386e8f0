"""The speed and the scaling of a cluster on this machine.

    python -m bench.cluster                              # all scenarios
    python -m bench.cluster --scenario ingress           # one of them

Each scenario starts clusters of its own and stops them. Their figures go to bench/out/cluster.json.
"""

from __future__ import annotations

import datetime
import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from bench import machine
from rich.console import Console

OUT = Path(__file__).resolve().parents[1] / "out"
SCENARIOS = ("ingress", "replicas", "bulk", "models", "scaling")
console = Console(width=None if Console().is_terminal else 120)


@click.command(help=__doc__)
@click.option("--scenario", "chosen", type=click.Choice(SCENARIOS), multiple=True, help="Default: all.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), help="Per phase; default: that of the scenario.")
def main(chosen: tuple[str, ...], seconds: float | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all clusters end
    for name in chosen or SCENARIOS:
        scenario = importlib.import_module(f"bench.cluster.{name}")
        found = scenario.measure(console, seconds or scenario.SECONDS)
        console.print_json(json.dumps(found))
        _write(name, found)


def _write(name: str, found: dict[str, Any]) -> None:
    """Renew the figures of one scenario in the report."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "cluster.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    report[name] = {
        "recorded": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": machine.describe(),
        **found,
    }
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {name} to {file.name}")


if __name__ == "__main__":
    main()
