"""The cost of the way through a cluster: HAProxy and the ingress next to one server and to Serve's own proxy.

The models do nothing, so that only the way costs time. A request has 100 documents of 600 bytes (60 kB). The plain
server answers it in one process (`sie-server serve`); the clusters have two ingress replicas and one model replica.
All of them run at the same time, and each round measures them in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from bench.cluster import nothing
from bench.cluster.callers import Turn, closed_loop
from bench.cluster.local import Cluster, memory_of, running
from bench.ingress_cost import body
from bench.local_server import wait_ready
from bench.raw_client import MSGPACK, request
from rich.console import Console

from sie_server.cluster.run import _free_port

CALLERS = 16
ROUNDS = 4
SECONDS = 2.5
IDLE_S = 10.0  # before the memory is measured
MODULE = "bench.cluster.nothing"
TABLE = "ingress_replicas = 2\ningress_cpus = 0.1\n[cluster.pools.nothing]\ncpus = 0.1\n"
PLAIN, OURS, PROXY, DEFAULTS = "one server", "HAProxy", "Serve's Python proxy", "Serve's defaults"
BARE = "HAProxy and an application without our code"
SIDES = {
    OURS: {},
    BARE: {},
    PROXY: {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    DEFAULTS: {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    },
}
MODULES = {BARE: "bench.cluster.bare"}


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Measure the plain server and the clusters in turn, for `seconds` per phase."""
    sent = request("POST", f"/v1/score/{nothing.MODEL}", body(), media=MSGPACK)
    with contextlib.ExitStack() as stack:
        clusters: dict[str, Cluster] = {}
        for name, settings in SIDES.items():
            console.print(f"starting the cluster with {name}")
            clusters[name] = stack.enter_context(
                running(TABLE, module=MODULES.get(name, MODULE), settings=settings)
            )
            if name == OURS:  # alone, because clusters share pages
                asyncio.run(closed_loop(clusters[name].port, sent, 4, 2.0))
                time.sleep(IDLE_S)
                memory = memory_of(clusters[name])
        ports = {PLAIN: stack.enter_context(plain_server()), **{n: c.port for n, c in clusters.items()}}
        found = asyncio.run(_rounds(console, ports, sent, seconds))
    return {
        "body_bytes": len(sent),
        "start_s": clusters[OURS].started_s,
        "memory_mib": memory.by_kind,
        "memory_without_model_replicas_mib": round(memory.of_the_rest),
        **found,
    }


@contextlib.contextmanager
def plain_server() -> Iterator[int]:
    """Start one server whose models do nothing, and yield its port."""
    port = _free_port()
    command = [sys.executable, "-m", MODULE, "serve", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command)
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def _rounds(console: Console, ports: dict[str, int], sent: bytes, seconds: float) -> dict[str, Any]:
    for port in ports.values():
        await closed_loop(port, sent, 8, 2.0)  # warm
    one, many = {name: Turn() for name in ports}, {name: Turn() for name in ports}
    added: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(ROUNDS):
        p50 = {}
        for name, port in ports.items():
            alone = await closed_loop(port, sent, 1, seconds)
            p50[name] = alone.ms(50)
            one[name].add(alone)
            many[name].add(await closed_loop(port, sent, CALLERS, seconds))
        for name, values in added.items():
            values.append(round(p50[name] - p50[PLAIN], 2))
        console.print(f"round {number + 1} of {ROUNDS}: ms that are added at p50: {added}")
    rates = {name: many[name].per_second for name in ports}
    return {
        "adds_ms": {name: median(values) for name, values in added.items()},
        "adds_ms_by_round": added,
        "times_the_throughput": {
            name: {other: round(rates[name] / rates[other], 2) for other in (PROXY, DEFAULTS)}
            for name in (OURS, BARE)
        },
        "sides": {
            name: {
                "one_caller_ms": _latencies(one[name]),
                "callers_ms": _latencies(many[name]),
                "per_second": round(rates[name], 1),
                "not_200": {**one[name].refused, **many[name].refused},
            }
            for name in ports
        },
    }


def _latencies(turn: Turn) -> dict[str, float]:
    return {f"p{percent}": turn.ms(percent) for percent in (50, 95, 99)}
