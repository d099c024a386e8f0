"""Throughput and latency of a server with many clients, and fairness during a bulk job.

    python -m bench.load                       # 32 clients × 100 documents × 20 s, embedded model
    python -m bench.load --mixed               # 16 × 10 documents, without and with a client of 2,000-document requests

The clients are `SIEAsyncClient`s in this process. The server is another process, started unless --url is given.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import statistics
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import httpx
from bench import machine
from bench.local_server import Server, running_server, server_at
from bench.workload import ROOT, natural_texts
from rich.console import Console
from rich.table import Table

from sie_sdk import Item, SIEAsyncClient, SIEError

OUT = Path(__file__).resolve().parent / "out"
DEFAULT_MODEL = "sie/mini-en"
QUERIES = ROOT / "examples/demo/queries.jsonl"
GIVE_UP_AFTER = 120.0  # seconds per request, retries included
INTERACTIVE, BULK = 16, 1  # clients of the mixed mode
INTERACTIVE_DOCUMENTS, BULK_DOCUMENTS = 10, 2_000
THINKING = 1.0  # mean seconds between two requests of an interactive client
console = Console(width=None if Console().is_terminal else 120)


class CountingTransport(httpx.AsyncHTTPTransport):
    """Counts answers by status, including those that the SDK retried."""

    def __init__(self, statuses: Counter[int]) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=32))
        self._statuses = statuses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        self._statuses[response.status_code] += 1
        return response


@dataclass
class Group:
    """Clients with the same behaviour, and their results."""

    clients: int
    documents: int
    pause: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of answered requests
    failures: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    last: float = 0.0  # time of the last answer, in seconds after the start

    @property
    def retries(self) -> int:
        """The number of answers other than 200 that did not end a request."""
        refused = sum(count for status, count in self.statuses.items() if status != 200)
        return max(0, refused - self.failures.total())

    @property
    def pairs_per_second(self) -> float:
        return len(self.latencies) * self.documents / self.last if self.last else 0.0

    def percentile(self, percent: int) -> float:
        """Return a percentile of the latencies in milliseconds."""
        if len(self.latencies) < 2:
            return (self.latencies or [float("nan")])[0] * 1e3
        return statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1] * 1e3


@dataclass(frozen=True)
class Outcome:
    """The results of a phase."""

    name: str
    groups: dict[str, Group]
    seconds: float
    server_cores: float
    client_cores: float
    other_cores: float
    rss_mib: float | None


def queries() -> list[str]:
    lines = QUERIES.read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["text"]) for line in lines]


async def one_client(url: str, model: str, group: Group, number: int, start: float, end: float) -> None:
    """Send requests until `end`; failed ones are counted."""
    rng = random.Random(number)
    items = [Item(text=text) for text in natural_texts(group.documents, seed=number)]
    texts = queries()
    async with SIEAsyncClient(
        url, deadline=GIVE_UP_AFTER, transport=CountingTransport(group.statuses)
    ) as client:
        await asyncio.sleep(rng.random() * max(0.02, group.pause))
        while (sent := time.perf_counter()) < end:
            try:
                result = await client.score(model, Item(text=rng.choice(texts)), items)
            except SIEError as error:
                group.failures[type(error).__name__] += 1
                await asyncio.sleep(0.1)
                continue
            now = time.perf_counter()
            group.latencies.append(now - sent)
            group.last = now - start
            if len(result["scores"]) != group.documents:
                group.failures["incomplete answer"] += 1
            if group.pause:
                await asyncio.sleep(group.pause * (0.5 + rng.random()))


async def apply_load(
    server: Server, model: str, name: str, groups: dict[str, Group], seconds: float
) -> Outcome:
    """Run all clients for `seconds`, then wait for their last requests."""
    peak = server.rss_mib or 0.0
    own, served = time.process_time(), server.cpu_seconds
    with machine.Bystanders() as others:
        start = time.perf_counter()
        end = start + seconds
        tasks = [
            asyncio.create_task(one_client(server.url, model, group, number, start, end))
            for group in groups.values()
            for number in range(group.clients)
        ]
        while pending := [task for task in tasks if not task.done()]:
            await asyncio.wait(pending, timeout=0.5)
            peak = max(peak, server.rss_mib or 0.0)
        elapsed = time.perf_counter() - start
        served = (server.cpu_seconds - served) / elapsed
        own = (time.process_time() - own) / elapsed
    for task in tasks:
        task.result()  # raises errors of the benchmark itself
    rss = peak if server.process else None
    return Outcome(name, groups, elapsed, served, own, max(0.0, others.cores - served), rss)


async def warm_up(server: Server, model: str, documents: int) -> None:
    async with SIEAsyncClient(server.url, deadline=GIVE_UP_AFTER) as client:
        for _ in range(3):
            await client.score(
                model, Item(text=queries()[0]), [Item(text=t) for t in natural_texts(documents)]
            )


async def uniform(server: Server, model: str, clients: int, documents: int, seconds: float) -> list[Outcome]:
    await warm_up(server, model, documents)
    return [await apply_load(server, model, "uniform", {"clients": Group(clients, documents)}, seconds)]


async def mixed(server: Server, model: str, seconds: float) -> list[Outcome]:
    """Run interactive clients alone, then together with a bulk client."""
    await warm_up(server, model, INTERACTIVE_DOCUMENTS)
    outcomes = []
    for name in ("alone", "with bulk"):
        groups = {"interactive": Group(INTERACTIVE, INTERACTIVE_DOCUMENTS, THINKING)}
        if name == "with bulk":
            groups["bulk"] = Group(BULK, BULK_DOCUMENTS)
        outcomes.append(await apply_load(server, model, name, groups, seconds))
    return outcomes


def show(outcomes: list[Outcome]) -> None:
    table = Table("phase", "clients", box=None, title="latencies in ms", title_justify="left")
    for heading in ("requests", "failed", "retries", "pairs/s", "p50", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        for name, group in outcome.groups.items():
            slowest = max(group.latencies, default=float("nan")) * 1e3
            table.add_row(
                outcome.name,
                f"{group.clients} {name} × {group.documents:,}",
                f"{len(group.latencies):,}",
                f"{group.failures.total():,}",
                f"{group.retries:,}",
                f"{group.pairs_per_second:,.0f}",
                *(f"{group.percentile(p):,.0f}" for p in (50, 95, 99)),
                f"{slowest:,.0f}",
            )
    console.print(table)
    for outcome in outcomes:
        rss = "unknown" if outcome.rss_mib is None else f"{outcome.rss_mib:,.0f} MiB"
        console.print(
            f"{outcome.name}: {outcome.seconds:.1f} s; cores: server {outcome.server_cores:.2f}, these clients "
            f"{outcome.client_cores:.2f}, others {outcome.other_cores:.2f}; server's peak memory {rss}"
        )
        for name, group in outcome.groups.items():
            for kind, count in group.failures.items():
                console.print(f"  [red]{name}: {count} × {kind}[/]")


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "phase": outcome.name,
        "seconds": round(outcome.seconds, 2),
        "server_cores": round(outcome.server_cores, 2),
        "client_cores": round(outcome.client_cores, 2),
        "other_cores": round(outcome.other_cores, 2),
        "server_rss_mib": None if outcome.rss_mib is None else round(outcome.rss_mib),
        "groups": {
            name: {
                "clients": group.clients,
                "documents": group.documents,
                "requests": len(group.latencies),
                "failures": dict(group.failures),
                "retries": group.retries,
                "pairs_per_second": round(group.pairs_per_second, 1),
                "latency_ms": {f"p{p}": round(group.percentile(p), 1) for p in (50, 95, 99)},
                "max_ms": round(max(group.latencies, default=0.0) * 1e3, 1),
            }
            for name, group in outcome.groups.items()
        },
    }


def loopback_port(url: str) -> int:
    """Return the port of a loopback address.

    Raises:
        click.BadParameter: the address belongs to another machine, which this benchmark must not load.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if parts.scheme != "http" or not local:
        raise click.BadParameter(
            f"{url}: only http on this machine (127.0.0.1, ::1, localhost)", param_hint="--url"
        )
    return parts.port or 80


def server_for(url: str | None, model: str, flags: tuple[str, ...]) -> AbstractContextManager[Server]:
    if url is None:
        # The clients repeat the same documents, and the benchmark measures the model, not its cache.
        return running_server(model, flags=("--document-cache-mb", "0", *flags))
    return nullcontext(server_at(url.rstrip("/"), loopback_port(url)))


@click.command()
@click.option("--url", help="A running server on this machine; default: start a server.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="ID or ID=SOURCE, as for `serve`.")
@click.option("--clients", type=click.IntRange(1, 256), default=32, show_default=True)
@click.option("--documents", type=click.IntRange(1, 5_000), default=100, show_default=True)
@click.option("--seconds", type=click.FloatRange(1, 600), default=20, show_default=True, help="Per phase.")
@click.option(
    "--mixed", "is_mixed", is_flag=True, help="Interactive clients, without and with a bulk client."
)
@click.option(
    "--flag", "flags", multiple=True, help="Flag for the server that is started, e.g. --flag=--threads=2."
)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(
    url: str | None,
    model: str,
    clients: int,
    documents: int,
    seconds: float,
    is_mixed: bool,
    flags: tuple[str, ...],
    out: Path,
) -> None:
    """Put load on a server on this machine for a limited time, and report the clients' results."""
    name = model.partition("=")[0]
    try:
        with server_for(url, model, flags) as server:
            run = (
                mixed(server, name, seconds)
                if is_mixed
                else uniform(server, name, clients, documents, seconds)
            )
            outcomes = asyncio.run(run)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    show(outcomes)
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.describe(), "model": name, "phases": [as_json(o) for o in outcomes]}
    file = out / ("load_mixed.json" if is_mixed else "load.json")
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {file.name}")
    if any(group.failures for outcome in outcomes for group in outcome.groups.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
