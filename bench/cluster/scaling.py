"""The number of replicas under changing load: from one to two and back, from none to one, and during noise.

Serve collects the figures of the replicas every ten seconds. The delays are shorter than the defaults (10 s and 300 s),
so that a run takes minutes; a short delay makes needless changes more likely, not less.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from bench.cluster.callers import PATIENCE_S, closed_loop
from bench.cluster.local import Cluster, running
from bench.cluster.replicas import body_for
from bench.raw_client import Connection
from rich.console import Console

MODEL = "sie/mini-en"
UP_S, DOWN_S = 5, 20
SECONDS = 120.0  # of noise
LIMIT_S = 120.0  # of a change
STARTS = 5  # from zero
TABLE = f"""ingress_replicas = 2
ingress_cpus = 0.1
upscale_delay_s = {UP_S}
downscale_delay_s = {DOWN_S}
[cluster.pools.load]
cpus = 0.1
min_replicas = 1
max_replicas = 2
[cluster.pools.zero]
cpus = 0.1
min_replicas = 0
max_replicas = 1
"""
FLAGS = ("--model", MODEL, "--batch-tokens", "2048", "--document-cache-mb", "0", "--load-wait-s", "1")


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Watch the number of replicas; the noise lasts for `seconds`."""
    with running(TABLE, *FLAGS) as cluster:
        found: dict[str, Any] = {"upscale_delay_s": UP_S, "downscale_delay_s": DOWN_S}
        for name, work in (("from_zero", _from_zero), ("up_and_down", _up_and_down)):
            found[name] = asyncio.run(work(cluster))
            console.print(f"{name}: {found[name]}")
        found["noise"] = asyncio.run(_noise(console, cluster, seconds))
        return found


async def _from_zero(cluster: Cluster) -> list[dict[str, Any]]:
    """Ask a pool without replicas several times: before a start has been measured, and after."""
    starts = []
    for number in range(STARTS):
        if number:
            await _until(cluster, "zero", 0)
        connection, sent = Connection(cluster.port), body_for(MODEL, 4, "X-SIE-Pool: zero\r\n")
        began = time.perf_counter()
        first = await connection.ask(sent, PATIENCE_S)
        told = time.perf_counter()
        answer = first
        while answer.status == 503 and time.perf_counter() - began < LIMIT_S:
            await asyncio.sleep(0.1)
            answer = await connection.ask(sent, PATIENCE_S)
        connection.close()
        left = time.perf_counter() - told
        starts.append(
            {
                "first": f"{first.status} {first.code}",
                "retry_after_s": first.retry_after,
                "real_s": round(left, 1),
                "retry_after_by_real": round(first.retry_after / left, 2) if first.retry_after else None,
                "last": answer.status,
            }
        )
    return starts


async def _up_and_down(cluster: Cluster) -> dict[str, Any]:
    """Keep one replica busy until there are two, then send nothing until there is one."""
    sent = body_for(MODEL, 50, "X-SIE-Pool: load\r\n")
    load = asyncio.create_task(closed_loop(cluster.port, sent, 3, LIMIT_S))
    up = await _until(cluster, "load", 2)
    await asyncio.sleep(20)  # two replicas stay while the load stays
    stayed = len(cluster.replicas("load"))
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    return {
        "seconds_to_two": up,
        "replicas_20_s_later": stayed,
        "seconds_to_one": await _until(cluster, "load", 1),
    }


async def _until(cluster: Cluster, pool: str, count: int) -> float | None:
    """Return the seconds until a pool has `count` replicas; None: more than `LIMIT_S`."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < LIMIT_S:
        if len(cluster.replicas(pool)) == count:
            return round(elapsed, 1)
        await asyncio.sleep(0.5)
    return None


async def _noise(console: Console, cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Send bursts of random length and size, with random pauses, and note every change of the number of replicas."""
    bursts = asyncio.create_task(_bursts(cluster.port, seconds))
    start, changes, last = time.perf_counter(), [], len(cluster.replicas("load"))
    while not bursts.done():
        count = len(cluster.replicas("load"))
        if count != last:
            changes.append((round(time.perf_counter() - start, 1), count))
            console.print(f"noise: {count} replicas after {changes[-1][0]} s")
            last = count
        await asyncio.sleep(1.0)
    requests, busy_s = bursts.result()
    return {
        "seconds": seconds,
        "requests": requests,
        "share_of_time_with_requests": round(busy_s / seconds, 2),
        "changes": changes,
    }


async def _bursts(port: int, seconds: float) -> tuple[int, float]:
    rng, requests, busy_s = random.Random(3), 0, 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sent = body_for(MODEL, rng.choice((5, 20, 50)), "X-SIE-Pool: load\r\n")
        turn = await closed_loop(port, sent, rng.choice((1, 1, 2, 4)), rng.uniform(0.2, 3.0))
        requests, busy_s = requests + len(turn.latencies), busy_s + turn.seconds
        await asyncio.sleep(rng.uniform(0.2, 3.0))
    return requests, busy_s
