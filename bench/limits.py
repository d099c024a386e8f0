"""Whether a key that is far over its limit delays another key, and whether the counters are exact.

    python -m bench.limits

A calm key sends requests of one document at random times. Next to it, a greedy key is first silent, then sends as much
as its limit allows, then sends in closed loops without a pause, and then does so with a key that has no limit. The four
phases alternate, round by round. At the end, the server's counters are compared with the requests that were sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import click
from bench import machine
from bench.local_server import running_server
from bench.overload_callers import MODEL, PATIENT_S, Crowd, bodies
from rich.console import Console
from rich.table import Table

OUT = Path(__file__).resolve().parent / "out"
SECRET = "bench-of-limits-"
CALM_PER_S, LIMIT_PER_S = 5, 5
LOOPS, DOCUMENTS = 16, 1
BURST_S = 1.5  # at the start of a phase, in which the greedy key uses up its burst; not measured
PHASES = {  # name → key of the greedy callers, requests a second (None: closed loops)
    "alone": ("limited", 0.0),
    "within its limit": ("limited", LIMIT_PER_S),
    "far over its limit": ("limited", None),
    "without a limit": ("unlimited", None),
}
KEYS = f"""
[[key]]
name = "calm"
key = "{SECRET}calm"
[[key]]
name = "limited"
key = "{SECRET}limited"
limits = {{requests_per_second = {LIMIT_PER_S}}}
[[key]]
name = "unlimited"
key = "{SECRET}unlimited"
[[key]]
name = "ops"
key = "{SECRET}ops"
scopes = ["admin"]
"""
console = Console(width=None if Console().is_terminal else 120)


def requests_of(key: str) -> list[bytes]:
    return bodies(DOCUMENTS, headers=f"Authorization: Bearer {SECRET}{key}\r\n")


async def arrivals(crowd: Crowd, sent: list[bytes], rate: float, seconds: float) -> None:
    """Send requests at random times, and wait for all answers, so that every request can be counted."""
    rng, due, tasks = random.Random(1), time.perf_counter(), []
    end = due + seconds
    while rate and (due := due + rng.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(crowd.one(rng.choice(sent), PATIENT_S)))
    await asyncio.sleep(max(0.0, end - time.perf_counter()))
    await asyncio.gather(*tasks)


async def phase(port: int, name: str, seconds: float, sent: Counter[str]) -> dict[str, float]:
    """Run the calm and the greedy callers; return the latency of the calm ones, in ms, and rates per second."""
    key, rate = PHASES[name]
    calm, greedy, start = Crowd(port), Crowd(port), time.perf_counter()
    pushing = (
        greedy.turns(requests_of(key), LOOPS, seconds)
        if rate is None
        else arrivals(greedy, requests_of(key), rate, seconds)
    )
    await asyncio.gather(arrivals(calm, requests_of("calm"), CALM_PER_S, seconds), pushing)
    sent["calm"] += len(calm.outcomes)
    sent[key] += len(greedy.outcomes)
    for crowd in (calm, greedy):
        crowd.close()
        crowd.outcomes = [outcome for outcome in crowd.outcomes if outcome.at > start + BURST_S]
    statuses = Counter(outcome.status for outcome in greedy.outcomes)
    return {
        "p50_ms": calm.percentile(0.5) * 1e3,
        "p95_ms": calm.percentile(0.95) * 1e3,
        "calm_failed": sum(outcome.status != 200 for outcome in calm.outcomes),
        "greedy_answered_per_s": statuses[200] / (seconds - BURST_S),
        "greedy_refused_per_s": statuses[429] / (seconds - BURST_S),
    }


def counters(url: str) -> dict[str, int]:
    """Return the requests of each key that the server has counted."""
    asked = urllib.request.Request(f"{url}/v1/admin/keys", headers={"Authorization": f"Bearer {SECRET}ops"})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return {key["name"]: key["requests"] for key in json.load(reply)["keys"]}


async def measure(
    port: int, rounds: int, seconds: float, sent: Counter[str]
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PHASES}
    warm = Crowd(port)
    await warm.turns(requests_of("calm"), 2, 2)
    sent["calm"] += len(warm.outcomes)
    warm.close()
    for _ in range(rounds):
        for name in PHASES:
            found[name].append(await phase(port, name, seconds, sent))
            await asyncio.sleep(1)  # the greedy key's limit refills
    return found


def tabulate(found: dict[str, list[dict[str, float]]]) -> None:
    table = Table("greedy key", box=None, title="the calm key, median of the rounds", title_justify="left")
    for heading in ("p50 ms", "p95 ms", "p95 ÷ within", "failed", "greedy answered/s", "greedy refused/s"):
        table.add_column(heading, justify="right")
    for name, rounds in found.items():
        ratios = [
            one["p95_ms"] / other["p95_ms"]
            for one, other in zip(rounds, found["within its limit"], strict=True)
        ]
        middle = {field: median(one[field] for one in rounds) for field in rounds[0]}
        table.add_row(
            name,
            *(f"{middle[field]:.0f}" for field in ("p50_ms", "p95_ms")),
            f"{median(ratios):.2f}",
            *(
                f"{middle[field]:.1f}"
                for field in ("calm_failed", "greedy_answered_per_s", "greedy_refused_per_s")
            ),
        )
    console.print(table)


@click.command()
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(4, 120), default=10, show_default=True, help="Per phase.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(rounds: int, seconds: float, out: Path) -> None:
    """Measure a calm key next to a greedy one."""
    sent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.toml"
        file.write_text(KEYS, encoding="utf-8")
        flags = ("--threads", "1", "--document-cache-mb", "0", "--api-keys-file", str(file))
        with running_server(MODEL, flags=flags) as server:
            found = asyncio.run(measure(urlsplit(server.url).port or 80, rounds, seconds, sent))
            counted = counters(server.url)
    tabulate(found)
    for key, number in sent.items():
        same = "equal" if counted[key] == number else "NOT EQUAL"
        console.print(f"{key}: {number} requests sent, {counted[key]} counted: {same}", highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.describe(), "phases": found, "sent": sent, "counted": counted}
    (out / "limits.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console.print("wrote limits.json")


if __name__ == "__main__":
    main()
