"""Interactive callers together with a bulk caller, with and without `options.priority`: a part of `bench.overload`."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

from bench.overload_callers import Crowd, bodies
from bench.raw_client import Connection, request

INTERACTIVE, DOCUMENTS, BULK_DOCUMENTS = 16, 10, 2_000
THINKING = 1.0  # mean seconds between two requests of an interactive caller


@dataclass(frozen=True)
class Lanes:
    """Interactive callers, alone or together with a bulk caller."""

    name: str
    p50_s: float
    p99_s: float
    batch_s: float  # mean time of a batch while the bulk caller keeps the device busy


async def measure_lanes(port: int, seconds: float) -> list[Lanes]:
    """Run the interactive callers alone, with a bulk caller, and with one that says so."""
    interactive = bodies(DOCUMENTS)
    found = [await _lanes(port, "alone", interactive, None, seconds)]
    for name, options in (("with bulk", {}), ("with bulk, priority sent", {"priority": "bulk"})):
        found.append(await _lanes(port, name, interactive, bodies(BULK_DOCUMENTS, 2, **options), seconds))
    return found


async def _lanes(
    port: int, name: str, interactive: list[bytes], bulk: list[bytes] | None, seconds: float
) -> Lanes:
    crowd, heavy = Crowd(port), Crowd(port)
    tasks = [crowd.turns(interactive, INTERACTIVE, seconds, THINKING)]
    if bulk:
        tasks.append(heavy.turns(bulk, 1, seconds))
    before, start = await batches(port), time.perf_counter()
    await asyncio.gather(*tasks)
    ran = await batches(port) - before
    batch_s = (time.perf_counter() - start) / ran if bulk and ran else float("nan")
    for done in (crowd, heavy):
        done.close()
    return Lanes(name, crowd.percentile(0.5), crowd.percentile(0.99), batch_s)


async def batches(port: int) -> float:
    """Return the number of batches so far."""
    connection = Connection(port)
    text = (await connection.ask(request("GET", "/metrics"), 30)).body.decode()
    connection.close()
    match = re.search(r"^sie_batch_tokens_count (\S+)", text, re.MULTILINE)
    return float(match[1]) if match else 0.0
