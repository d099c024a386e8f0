"""The cost of the way through a cluster: HAProxy and the ingress next to one server and to Serve's own proxy.

The models do nothing, so that only the way costs time. A request has 100 documents of 600 bytes (60 kB). The plain
server answers it in one process (`sie-server serve`); the clusters have two ingress replicas and one model replica.
Rounds of the plain server alternate with those of each cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
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
OURS, PROXY, DEFAULTS = "HAProxy", "Serve's Python proxy", "Serve's defaults"
SIDES = {
    OURS: {},
    PROXY: {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    DEFAULTS: {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    },
}


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Measure the clusters, each next to the plain server, for `seconds` per phase."""
    sent = request("POST", f"/v1/score/{nothing.MODEL}", body(), media=MSGPACK)
    found: dict[str, Any] = {"body_bytes": len(sent)}
    for name, settings in SIDES.items():
        console.print(f"starting the cluster with {name}")
        with running(TABLE, module=MODULE, settings=settings) as cluster, plain_server() as plain:
            found[name] = asyncio.run(_compare(console, name, cluster, plain, sent, seconds))
    for name in (PROXY, DEFAULTS):
        # the share of the plain server's throughput, because other programs slow both of a round down
        ratio = found[OURS]["of_plain"] / found[name]["of_plain"]
        found[f"times the throughput of {name}"] = round(ratio, 2)
    return found


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


async def _compare(
    console: Console, name: str, cluster: Cluster, plain: int, sent: bytes, seconds: float
) -> dict[str, Any]:
    for port in (plain, cluster.port):
        await closed_loop(port, sent, 4, 2.0)  # warm
    await asyncio.sleep(IDLE_S)
    memory = memory_of(cluster)
    sides = {"plain": (plain, Turn(), Turn()), "cluster": (cluster.port, Turn(), Turn())}
    added = []
    for number in range(ROUNDS):
        p50 = {}
        for side, (port, one, many) in sides.items():
            alone = await closed_loop(port, sent, 1, seconds)
            p50[side] = alone.ms(50)
            one.add(alone)
            many.add(await closed_loop(port, sent, CALLERS, seconds))
        added.append(round(p50["cluster"] - p50["plain"], 2))
        console.print(f"{name}, round {number + 1} of {ROUNDS}: adds {added[-1]} ms at p50")
    _, one, many = sides["cluster"]
    _, plain_one, plain_many = sides["plain"]
    return {
        "start_s": cluster.started_s,
        "one_caller_ms": _latencies(one),
        "plain_one_caller_ms": _latencies(plain_one),
        "adds_ms": median(added),
        "adds_ms_by_round": added,
        "per_second": round(many.per_second, 1),
        "callers_ms": _latencies(many),
        "plain_per_second": round(plain_many.per_second, 1),
        "of_plain": many.per_second / plain_many.per_second,
        "not_200": {**one.refused, **many.refused},
        "memory_mib": memory.by_kind,
        "memory_without_model_replicas_mib": round(memory.of_the_rest),
    }


def _latencies(turn: Turn) -> dict[str, float]:
    return {f"p{percent}": turn.ms(percent) for percent in (50, 95, 99)}
