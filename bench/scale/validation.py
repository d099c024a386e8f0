"""The simulation next to a real server: the same arrival times, and the latencies of both.

    python -m bench.scale.validation           # two minutes; --record also renews the figures of docs/scale.md

Requests of 20 documents for the embedded model on one thread arrive at random times. The simulation gets two measured
numbers: the capacity (four callers in a closed loop), and the time that a request on an idle server takes in addition
to its device time (HTTP, tokenising, the client). It then replays the arrivals of the same run.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec
from bench import machine
from bench.local_server import running_server
from bench.overload_callers import MODEL, PATIENT_S, Crowd, bodies, median
from bench.raw_client import Connection
from bench.scale.events import Loop
from bench.scale.page import VALIDATED, write_page
from bench.scale.replica import Device, Replica
from bench.scale.scenarios import percentiles
from bench.scale.traffic import job_with

DOCUMENTS, KINDS, CALLERS, BATCH_TOKENS = 20, 16, 4, 2_048
LOADS = (0.5, 0.7, 0.85)
FLAGS = (
    "--threads",
    "1",
    "--document-cache-mb",
    "0",
    "--batch-tokens",
    str(BATCH_TOKENS),
    "--log-level",
    "error",
)


async def tokens_of(port: int, sent: list[bytes]) -> float:
    """Return the mean tokens of the requests, as the server counts them."""
    connection = Connection(port)
    answers = [msgspec.json.decode((await connection.ask(one)).body) for one in sent]
    connection.close()
    return sum(answer["usage"]["input_tokens"] for answer in answers) / len(answers)


async def measure(port: int, seconds: float) -> dict[str, Any]:
    """Measure capacity and idle latency, then each load; replay the arrivals of each."""
    sent = bodies(DOCUMENTS, KINDS)
    tokens = await tokens_of(port, sent)
    alone, busy = Crowd(port), Crowd(port)
    await alone.turns(sent, 1, seconds / 2)
    start = time.perf_counter()
    await busy.turns(sent, CALLERS, seconds)
    capacity = len(busy.answered(start, start + seconds)) / seconds
    idle_s = median([outcome.seconds for outcome in alone.outcomes])
    device = Device(tokens * capacity, BATCH_TOKENS)
    rows = []
    for load in LOADS:
        crowd = Crowd(port)
        await crowd.arrivals(sent, load * capacity, seconds, PATIENT_S)
        crowd.close()
        answered = sorted((o.at, o.seconds) for o in crowd.outcomes if o.status == 200)
        replayed = replay(device, tokens, [at for at, _ in answered], max(0.0, idle_s - 1 / capacity))
        rows.append({"load": load, "requests": len(answered), **_row("measured", [s for _, s in answered])})
        rows[-1] |= _row("simulated", replayed)
    for done in (alone, busy):
        done.close()
    return {
        "capacity": round(capacity, 2),
        "idle_ms": round(1e3 * idle_s),
        "tokens": round(tokens),
        "rows": rows,
    }


def replay(device: Device, tokens: float, arrivals: list[float], extra_s: float) -> list[float]:
    """Return the simulated latencies of requests with these arrival times."""
    loop, latencies = Loop(), [0.0] * len(arrivals)
    replica = Replica(loop, device, "replica")

    def arrive(i: int) -> None:
        start = loop.now
        replica.submit(job, lambda: latencies.__setitem__(i, loop.now - start + extra_s))

    job = job_with([round(tokens / DOCUMENTS)] * DOCUMENTS)
    for i, at in enumerate(arrivals):
        loop.after(at - arrivals[0], partial(arrive, i))
    loop.run()
    return latencies


def _row(name: str, seconds: list[float]) -> dict[str, int]:
    import numpy as np

    found = percentiles(np.array(seconds) * 1e3)
    return {f"{name}_p50": round(found.p50), f"{name}_p95": round(found.p95)}


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 600), default=30, show_default=True, help="Per load.")
@click.option("--record", is_flag=True, help="Renew the figures of docs/scale.md.")
def main(seconds: float, record: bool) -> None:
    """Measure a server and replay its arrivals in the simulation."""
    with running_server(MODEL, flags=FLAGS) as server, machine.Bystanders() as others:
        start = server.cpu_seconds
        found = asyncio.run(measure(urlsplit(server.url).port or 80, seconds))
        served = server.cpu_seconds - start
    found["other_cores"] = round(max(0.0, others.cores - served / others.elapsed), 2)
    found["recorded"], found["machine"] = (
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine.describe(),
    )
    print(json.dumps(found, indent=2))
    if record:
        VALIDATED.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        write_page()


if __name__ == "__main__":
    main()
