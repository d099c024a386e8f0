"""A cluster of three Ray nodes under load while its parts are killed: do calls fail, and which ones?

    python -m bench.cluster_faults                            # all scenarios, about an hour
    python -m bench.cluster_faults --scenario node=3 --scenario swaps

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
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import httpx
from bench.faults import events
from bench.faults.clients import Crowd, Versions
from bench.faults.events import Events, Run
from bench.faults.nodes import Cluster, Shape, running
from bench.faults.report import console, store, table
from bench.faults.requests import Expected, expected_scores, write_models
from bench.faults.reruns import Reruns

WARM_S, COOL_S = 5.0, 3.0
SMALL = Shape()


@dataclass(frozen=True)
class Scenario:
    """A kind of fault, how often it is repeated by default, and the cluster that it needs.

    Scenarios of one shape that follow each other share a cluster.
    """

    name: str
    events: Events
    times: int
    shape: Shape = SMALL


SCENARIOS = [
    Scenario("replica", events.replica, 10),
    Scenario("ingress", events.ingress, 10),
    Scenario("swaps", events.swaps, 20),
    Scenario("hang", events.hang, 3),
    Scenario("node", events.node, 10),
    Scenario("link", events.link, 3),
    Scenario("redeploy", events.redeploy, 3, Shape(cpus=4.0)),
    Scenario("lone", events.replica, 3, Shape(replicas=1)),
    Scenario("head", events.head, 3, Shape(redis=True)),
]


@click.command(help=__doc__)
@click.option("--scenario", "names", multiple=True, metavar="NAME[=TIMES]", help="Default: all.")
@click.option("--clients", type=click.IntRange(1, 64), default=16, show_default=True, help="Of each kind.")
@click.option("--minutes", type=click.FloatRange(0.1), default=15, show_default=True, help="Of a scenario.")
def main(names: tuple[str, ...], clients: int, minutes: float) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the nodes are ended too
    chosen = chosen_of(names)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        write_models(models_dir)
        console.print("scores of one server …")
        bench = Bench(expected_scores(models_dir), clients, minutes * 60)
        for shape, group in groupby(chosen, lambda one: one.shape):
            console.print("three nodes start …")
            with running(models_dir, shape) as cluster:
                for scenario in group:
                    results.append(bench.measured(scenario, cluster))
                    store(results[-1])
    console.print(table(results))
    if any(
        one["problem"] or one["sdk"]["failed"] or one["sdk"]["wrong"] or one["plain"]["wrong"]
        for one in results
    ):
        raise SystemExit(1)


def chosen_of(names: tuple[str, ...]) -> list[Scenario]:
    """Return the scenarios of the command line, in the order of the table.

    Raises:
        click.BadParameter
    """
    known, wanted = {one.name: one for one in SCENARIOS}, {}
    for name, _, times in (word.partition("=") for word in names):
        if name not in known or not (times == "" or (times.isdigit() and int(times))):
            raise click.BadParameter(
                f"{name}{'=' if times else ''}{times}: expected NAME or NAME=TIMES, with one of {', '.join(known)}",
                param_hint="--scenario",
            )
        wanted[name] = replace(known[name], times=int(times)) if times else known[name]
    return [wanted[one.name] for one in SCENARIOS if one.name in wanted] if names else SCENARIOS


@dataclass(frozen=True)
class Bench:
    """Runs scenarios with the same clients and limits."""

    expected: Expected
    clients: int
    seconds: float

    def measured(self, scenario: Scenario, cluster: Cluster) -> dict[str, Any]:
        """Run the events of a scenario under load, and return the figures."""
        console.print(f"[bold]{scenario.name}[/bold]")
        crowd = Crowd(
            cluster.url, Versions(self.expected, events.desired(cluster)), self.clients, self.clients
        )
        reruns, lines = Reruns(), []  # type: Reruns, list[str]
        look(cluster, reruns)
        before, end, problem = reruns.total, time.monotonic() + self.seconds, ""
        with crowd.calling():
            time.sleep(WARM_S)
            try:
                for line in scenario.events(Run(cluster, crowd), scenario.times):
                    look(cluster, reruns)
                    lines.append(line)
                    progress(len(lines), line, crowd)
                    if time.monotonic() > end:
                        break
            except click.ClickException as error:  # the figures until then count
                problem = error.message
                console.print(f"  ended: {problem}")
            time.sleep(COOL_S)
            look(cluster, reruns)
        if not crowd.sdk.calls or not crowd.plain.calls:
            raise click.ClickException("the clients do not call; see the tracebacks of their threads above")
        return {
            "scenario": scenario.name,
            "times": len(lines),
            "events": lines,
            "problem": problem,
            "reruns": reruns.total - before,
            "sdk": crowd.sdk.figures(),
            "plain": crowd.plain.figures(),
        }


def progress(number: int, line: str, crowd: Crowd) -> None:
    sdk, plain = crowd.sdk, crowd.plain
    console.print(
        f"  {number}: {line}; SDK {sdk.calls} calls, {sdk.failed.total()} failed, {sdk.wrong} wrong, slowest "
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
