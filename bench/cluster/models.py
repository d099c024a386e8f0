"""Six models on three replicas, with memory for two models in each: how often are models loaded?

Three phases: one request a second for a model at random; many callers of one model in addition, until every replica
has it; one request a second again. The metrics of the replicas count the loads.
"""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.cluster.callers import closed_loop
from bench.cluster.local import Cluster, running
from bench.cluster.replicas import body_for
from bench.raw_client import Connection, request
from bench.workload import Shape, write_checkpoint
from rich.console import Console

MODELS = tuple(f"bench/model-{i}" for i in range(6))
SHAPE = Shape("small", "bert", 2, 128, 4, 512, 512, 60.5, 0, 0)
REPLICAS, EACH = 3, 2
SECONDS = 180.0  # per phase of low load
PAUSE_S, HOT_CALLERS, HOT_S = 1.0, 24, 30.0
TABLE = f"""ingress_replicas = 2
ingress_cpus = 0.1
spread_s = 0.25
[cluster.pools.three]
cpus = 0.1
min_replicas = {REPLICAS}
"""
FLAGS = ("--batch-tokens", "2048", "--document-cache-mb", "0", "--dtype", "float32")
LOADED = re.compile(r'sie_model_loaded\{model="([^"]+)",replica="(\w+)"\} 1')
COUNTED = re.compile(r'sie_model_(loads|evictions)_total\{model="([^"]+)",replica="\w+"\} (\S+)')


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Count loads in the phases; those of low load take `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        for seed, model in enumerate(MODELS):
            write_checkpoint(SHAPE, Path(folder) / model, seed=seed)
        weights = (Path(folder) / MODELS[0] / "model.safetensors").stat().st_size
        budget = int(weights * (EACH + 0.6) / 2**20)
        flags = ("--memory-budget-mb", str(budget), *FLAGS)
        with running(TABLE, *flags, models_dir=Path(folder), top="model = []") as cluster:
            return asyncio.run(_phases(console, cluster, seconds))


async def _phases(console: Console, cluster: Cluster, seconds: float) -> dict[str, Any]:
    hot, found = MODELS[0], {}
    for name, duration in (("low load", seconds), ("hot model", HOT_S), ("low load again", seconds)):
        before = await _counts(cluster.port)
        work = [_low_load(cluster.port, duration)] if name != "hot model" else []
        if name == "hot model":
            work += [_hot(cluster.port, hot, duration), _spread(cluster.port, hot, duration)]
        results = await asyncio.gather(*work)
        after = await _counts(cluster.port)
        found[name] = {
            "seconds": duration,
            "loads": dict(after["loads"] - before["loads"]),
            "evictions": sum((after["evictions"] - before["evictions"]).values()),
            "replicas_with_the_hot_model": await _having(cluster.port, hot),
            **{key: value for one in results for key, value in one.items()},
        }
        console.print(f"{name}: loads {found[name]['loads']}, evictions {found[name]['evictions']}")
    first = found["low load"]["loads"]
    return {"most_loads_of_a_model_at_low_load": max(first.values(), default=0), **found}


async def _low_load(port: int, seconds: float) -> dict[str, Any]:
    """Send a request for a random model every `PAUSE_S`, each of the models first once."""
    rng, connection, statuses = random.Random(1), Connection(port), Counter[int]()
    sent = {model: body_for(model, 4) for model in MODELS}
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        model = MODELS[number] if number < len(MODELS) else rng.choice(MODELS)
        statuses[(await connection.ask(sent[model])).status] += 1
        number += 1
        await asyncio.sleep(2 * PAUSE_S if number < len(MODELS) else PAUSE_S)
    connection.close()
    return {"statuses": dict(statuses)}


async def _hot(port: int, model: str, seconds: float) -> dict[str, Any]:
    turn = await closed_loop(port, body_for(model, 30), HOT_CALLERS, seconds)
    return {"hot_requests_per_second": round(turn.per_second, 1), "not_200": turn.refused}


async def _spread(port: int, model: str, seconds: float) -> dict[str, Any]:
    """Return how long it takes until every replica has the model; None: longer than `seconds`."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        if await _having(port, model) == REPLICAS:
            return {"on_every_replica_after_s": round(elapsed, 1)}
        await asyncio.sleep(0.5)
    return {"on_every_replica_after_s": None}


async def _page(port: int) -> str:
    connection = Connection(port)
    page = (await connection.ask(request("GET", "/metrics"))).body.decode()
    connection.close()
    return page


async def _having(port: int, model: str) -> int:
    return len({replica for name, replica in LOADED.findall(await _page(port)) if name == model})


async def _counts(port: int) -> dict[str, Counter[str]]:
    found = {"loads": Counter[str](), "evictions": Counter[str]()}
    for kind, model, value in COUNTED.findall(await _page(port)):
        found[kind][model] += int(float(value))
    return found
