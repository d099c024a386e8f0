"""A client with 2,000 documents per request and interactive ones at the same time: a cluster, and one server.

The cluster has two replicas of one thread each and splits large requests; the server is like one of them. Phases
of both alternate. Then the responses to the same requests, split and not split, are compared.
"""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import msgspec
from bench import load
from bench.cluster.local import Cluster, running
from bench.cluster.replicas import body_for
from bench.local_server import Server, running_server
from bench.raw_client import Connection
from rich.console import Console

MODEL = "sie/mini-en"
SECONDS = 15.0
ROUNDS = 3
SIZES = (33, 100, 250, 2_000)  # documents of the requests whose responses are compared
TABLE = """ingress_replicas = 2
ingress_cpus = 0.1
split_documents = 25
[cluster.pools.two]
cpus = 1
min_replicas = 2
"""
COMMON = ("--document-cache-mb", "0", "--batch-tokens", "4096", "--log-level", "warning")


def measure(console: Console, seconds: float) -> dict[str, Any]:
    """Measure interactive clients together with a bulk client, for `seconds` per phase."""
    with (
        running(TABLE, "--model", MODEL, *COMMON, cpus=3) as cluster,
        running_server(MODEL, flags=("--threads", "1", *COMMON)) as server,
    ):
        sides = {"cluster": Server(cluster.url, None), "server": server}
        rounds = [asyncio.run(_round(console, sides, seconds, n)) for n in range(ROUNDS)]
    # in fp32, because the texts of a batch change the last bits of a score, and those of bf16 are large
    flags = (*COMMON, "--dtype", "float32")
    with (
        running(TABLE, "--model", MODEL, *flags, cpus=3) as cluster,
        running_server(MODEL, flags=("--threads", "1", *flags)) as server,
    ):
        equal = asyncio.run(_compare(cluster, urlsplit(server.url).port or 80))
    return {"rounds": rounds, **_summary(rounds), "responses": equal}


async def _round(
    console: Console, sides: dict[str, Server], seconds: float, number: int
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, server in sides.items():
        phases = [load.as_json(one) for one in await load.mixed(server, MODEL, seconds)]
        found[name] = {one["phase"]: one["groups"] for one in phases}
        interactive = found[name]["with bulk"]["interactive"]["latency_ms"]["p95"]
        console.print(f"round {number + 1} of {ROUNDS}, {name}: interactive p95 with bulk {interactive} ms")
    return found


def _summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    def p95(one: dict[str, dict[str, Any]], name: str) -> float:
        return float(one[name]["with bulk"]["interactive"]["latency_ms"]["p95"])

    def rate(one: dict[str, dict[str, Any]], name: str) -> float:
        return float(one[name]["with bulk"]["bulk"]["pairs_per_second"])

    return {
        "p95_ms": {name: median(p95(one, name) for one in rounds) for name in ("cluster", "server")},
        "p95_of_the_server": round(median(p95(one, "cluster") / p95(one, "server") for one in rounds), 2),
        "bulk_pairs_per_second": {
            name: median(rate(one, name) for one in rounds) for name in ("cluster", "server")
        },
    }


async def _compare(cluster: Cluster, plain: int) -> dict[str, Any]:
    """Send the same requests to an idle cluster, which splits them, and to one server."""
    split, whole = Connection(cluster.port), Connection(plain)
    other_order = other_usage = 0
    difference = 0.0
    before = await _tokens(split)
    for seed, documents in enumerate(SIZES):
        sent = body_for(MODEL, documents, seed=seed)
        ours, theirs = [msgspec.msgpack.decode((await one.ask(sent)).body) for one in (split, whole)]
        order, expected = ([e["item_id"] for e in one["scores"]] for one in (ours, theirs))
        other_order += order != expected
        other_usage += ours["usage"] != theirs["usage"]
        by_id = {e["item_id"]: e["score"] for e in theirs["scores"]}
        difference = max(difference, *(abs(e["score"] - by_id[e["item_id"]]) for e in ours["scores"]))
        await asyncio.sleep(1.5)  # the replicas report that they are idle
    after = await _tokens(split)
    for one in (split, whole):
        one.close()
    return {
        "requests": len(SIZES),
        "documents": list(SIZES),
        "other_order": other_order,
        "other_usage": other_usage,
        "largest_difference_of_scores": difference,
        "tokens_by_replica": [round(after[name] - before.get(name, 0)) for name in sorted(after)],
    }


async def _tokens(connection: Connection) -> dict[str, float]:
    """Return the tokens that each replica has read."""
    from bench.raw_client import request
    from prometheus_client.parser import text_string_to_metric_families

    page = (await connection.ask(request("GET", "/metrics"))).body.decode()
    return {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "sie_tokens_total"
    }
