"""Two replicas of one thread each next to one replica with two threads, on one machine.

Both are pools of one cluster, and a header chooses the pool. Rounds of both alternate. The model has the shape of
MiniLM-L6 with random weights, so that the model and not the way costs the time.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench.cluster.callers import Turn, closed_loop
from bench.cluster.local import Cluster, running
from bench.raw_client import MSGPACK, request
from bench.workload import MINILM, QUERY, natural_texts, write_checkpoint
from rich.console import Console

MODEL = "bench/minilm"
SECONDS = 10.0
ROUNDS, CALLERS, DOCUMENTS = 5, 8, 32
TABLE = """ingress_replicas = 2
ingress_cpus = 0.1
[cluster.pools.one]
cpus = 2
[cluster.pools.two]
cpus = 1
min_replicas = 2
"""
FLAGS = ("--model", MODEL, "--batch-tokens", "2048", "--document-cache-mb", "0")


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Measure the throughput of both pools, for `seconds` per phase."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(MINILM, Path(folder) / MODEL)
        # Ray counts more CPUs than there are, because only one pool works at a time
        with running(TABLE, *FLAGS, cpus=6, models_dir=Path(folder)) as cluster:
            return asyncio.run(_rounds(console, cluster, seconds))


async def _rounds(console: Console, cluster: Cluster, seconds: float) -> dict[str, Any]:
    sent = {name: body_for(MODEL, DOCUMENTS, f"X-SIE-Pool: {name}\r\n") for name in ("one", "two")}
    for one in sent.values():
        await closed_loop(cluster.port, one, CALLERS, seconds / 3)  # warm
    turns, ratios = {name: Turn() for name in sent}, []
    for number in range(ROUNDS):
        rate = {}
        for name, one in sent.items():
            turn = await closed_loop(cluster.port, one, CALLERS, seconds)
            rate[name] = turn.per_second
            turns[name].add(turn)
        ratios.append(round(rate["two"] / rate["one"], 3))
        console.print(
            f"round {number + 1} of {ROUNDS}: two replicas have {ratios[-1]:.0%} of one's throughput"
        )
    return {
        "documents": DOCUMENTS,
        "callers": CALLERS,
        "pairs_per_second": {name: round(turn.per_second * DOCUMENTS, 1) for name, turn in turns.items()},
        "two_by_one": median(ratios),
        "two_by_one_by_round": ratios,
        "not_200": {name: turn.refused for name, turn in turns.items()},
    }


def body_for(model: str, documents: int, headers: str = "", seed: int = 0, **options: Any) -> bytes:
    """Return a score request for texts of natural lengths."""
    items = [{"text": text} for text in natural_texts(documents, seed=seed)]
    body = {"query": {"text": QUERY}, "items": items, **({"options": options} if options else {})}
    return request("POST", f"/v1/score/{model}", body, media=MSGPACK, headers=headers)
