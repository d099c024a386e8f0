"""A cluster of three Ray nodes under load while its parts are killed: do calls fail, and which ones?

    python -m bench.cluster_faults                            # all scenarios, about an hour
    python -m bench.cluster_faults --scenario node --times 3

16 clients of sie_sdk and 16 plain HTTP clients, which repeat nothing, send bodies of 60 kB. Every answer is compared
with the scores of one server. The nodes are network namespaces of this machine, so the command needs Linux and root.
A call of the SDK that fails, or a wrong answer of either client, makes the command fail; failures of the plain clients
are the residual that callers without a retry see.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from bench.clusters import events
from bench.clusters.clients import Crowd, Versions
from bench.clusters.events import Events, Run
from bench.clusters.nodes import Cluster, running
from bench.clusters.report import console, store, table
from bench.clusters.requests import VERSIONS, Expected, expected_scores, write_models
from bench.clusters.reruns import Reruns

WARM_S, COOL_S = 5.0, 3.0


@dataclass(frozen=True)
class Scenario:
    """A kind of fault, how often it is repeated by default, and the cluster that it needs."""

    name: str
    events: Events
    times: int
    cpus: float = 1.0  # of a worker; 1 has room for one replica of each deployment
    redis: bool = False
    replicas: int = 2


SCENARIOS = [
    Scenario("replica", events.replica, 10),
    Scenario("ingress", events.ingress, 10),
    Scenario("node", events.node, 10),
    Scenario("head", events.head, 3, redis=True),
    Scenario("link", events.link, 3),
    Scenario("hang", events.hang, 3),
    Scenario("lone", events.replica, 3, replicas=1),
    Scenario("redeploy", events.redeploy, 3, cpus=4.0),
    Scenario("swaps", events.swaps, 20),
]


@click.command(help=__doc__)
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice([one.name for one in SCENARIOS]),
    help="Default: all.",
)
@click.option("--times", type=click.IntRange(1, 100), help="Number of events of each scenario.")
@click.option("--clients", type=click.IntRange(1, 64), default=16, show_default=True, help="Of each kind.")
def main(names: tuple[str, ...], times: int | None, clients: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the nodes are ended too
    chosen = [one for one in SCENARIOS if not names or one.name in names]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        write_models(models_dir)
        console.print("scores of one server …")
        expected = expected_scores(models_dir)
        for scenario in chosen:
            results.append(measured(scenario, times or scenario.times, clients, models_dir, expected))
            store(results[-1])
    console.print(table(results))
    if any(one["sdk"]["failed"] or one["sdk"]["wrong"] or one["plain"]["wrong"] for one in results):
        raise SystemExit(1)


def measured(
    scenario: Scenario, times: int, clients: int, models_dir: Path, expected: Expected
) -> dict[str, Any]:
    """Start a cluster, run the events of a scenario under load, and return the figures."""
    console.print(f"[bold]{scenario.name}[/bold]: starting three nodes …")
    with running(models_dir, cpus=scenario.cpus, redis=scenario.redis, replicas=scenario.replicas) as cluster:
        crowd, reruns = Crowd(cluster.url, Versions(expected, VERSIONS[0]), clients, clients), Reruns()
        run, lines = Run(cluster, crowd), []
        look(cluster, reruns)
        with crowd.calling():
            time.sleep(WARM_S)
            for line in scenario.events(run, times):
                look(cluster, reruns)
                lines.append(line)
                progress(len(lines), times, line, crowd)
            time.sleep(COOL_S)
            look(cluster, reruns)
    return {
        "scenario": scenario.name,
        "times": times,
        "events": lines,
        "reruns": reruns.total,
        "sdk": crowd.sdk.figures(),
        "plain": crowd.plain.figures(),
    }


def progress(number: int, times: int, line: str, crowd: Crowd) -> None:
    sdk, plain = crowd.sdk, crowd.plain
    console.print(
        f"  {number}/{times} {line}; SDK {sdk.calls} calls, {sdk.failed.total()} failed, {sdk.wrong} wrong, slowest "
        f"{sdk.slowest_s:.1f} s; plain {plain.calls} calls, {dict(plain.failed)}"
    )


def look(cluster: Cluster, reruns: Reruns) -> None:
    """Read the counters of the ingress replicas; one that does not answer is read the next time."""
    try:
        reruns.look(httpx.get(f"{cluster.url}/metrics", timeout=15).text)
    except httpx.HTTPError:
        console.print("  the metrics do not answer")


if __name__ == "__main__":
    main()
