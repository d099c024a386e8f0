"""A server that is killed and started again under clients: does a call fail, and does each end within its deadline?

    python -m bench.restarts                       # 200 restarts under 16 clients, about half an hour
    python -m bench.restarts --count 20 --away 1

The clients are those of sie_sdk, half of them sync and half async. The server is killed half a second after all of them
have had an answer of it. A call that fails, exceeds its deadline or returns
scores other than those of the first call makes the command fail. Everything runs on the loopback interface.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
from bench import machine
from bench.local_server import wait_ready
from rich.progress import track

from sie_sdk import Item, SIEAsyncClient, SIEClient, SIEError

OUT = Path(__file__).resolve().parent / "out"
MODEL = "sie/mini-en"
QUERY, ITEMS = Item(text="how do stars burn"), [Item(text="stars burn hydrogen"), Item(text="rain falls")]
DEADLINE_S = 60.0
BF16 = 0.02  # scores depend on the other texts of a batch by this much


@dataclass
class Seen:
    """The calls of all clients, and which of them have had an answer since the last restart."""

    calls: int = 0
    failed: int = 0
    wrong: int = 0
    longest_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    restarts: int = 0
    stopped: bool = False
    served: set[int] = field(default_factory=set)

    def add(self, client: int, scores: list[float] | SIEError, expected: list[float], seconds: float) -> None:
        """Count a call of a client; runs on several threads, each step of which is atomic."""
        self.calls += 1
        self.longest_s = max(self.longest_s, seconds)
        if isinstance(scores, SIEError):
            self.failed += 1
            self.errors.append(str(scores))
            return
        self.served.add(client)
        if any(abs(a - b) > BF16 for a, b in zip(scores, expected, strict=True)):
            self.wrong += 1


def ask(number: int, url: str, expected: list[float], seen: Seen) -> None:
    """Call in a loop with a blocking client."""
    with SIEClient(url, deadline=DEADLINE_S) as client:
        while not seen.stopped:
            started = time.monotonic()
            try:
                result = [entry["score"] for entry in client.score(MODEL, QUERY, ITEMS)["scores"]]
                seen.add(number, result, expected, time.monotonic() - started)
            except SIEError as error:
                seen.add(number, error, expected, time.monotonic() - started)
            time.sleep(0.02)


async def ask_async(numbers: range, url: str, expected: list[float], seen: Seen) -> None:
    """Call in loops with one async client."""

    async def one(client: SIEAsyncClient, number: int) -> None:
        while not seen.stopped:
            started = time.monotonic()
            try:
                result = [entry["score"] for entry in (await client.score(MODEL, QUERY, ITEMS))["scores"]]
                seen.add(number, result, expected, time.monotonic() - started)
            except SIEError as error:
                seen.add(number, error, expected, time.monotonic() - started)
            await asyncio.sleep(0.02)

    async with SIEAsyncClient(url, deadline=DEADLINE_S) as client:
        await asyncio.gather(*(one(client, number) for number in numbers))


def start(port: int) -> subprocess.Popen[bytes]:
    """Start a server; its log is not shown."""
    command = [sys.executable, "-m", "sie_server", "serve", "--port", str(port), "--model", MODEL]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


@click.command(help=__doc__)
@click.option("--count", default=200, show_default=True, help="Number of restarts.")
@click.option("--away", default=3.0, show_default=True, help="Seconds between the kill and the start.")
@click.option("--clients", default=16, show_default=True)
@click.option("--port", default=18990, show_default=True)
def main(count: int, away: float, clients: int, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    process = start(port)
    seen = Seen()
    try:
        wait_ready(url, process)
        with SIEClient(url) as client:
            expected = [entry["score"] for entry in client.score(MODEL, QUERY, ITEMS)["scores"]]
        half = range(clients // 2)
        threads = [threading.Thread(target=ask, args=(number, url, expected, seen)) for number in half]
        others = range(clients // 2, clients)
        threads.append(threading.Thread(target=lambda: asyncio.run(ask_async(others, url, expected, seen))))
        for thread in threads:
            thread.start()
        time.sleep(5)  # every client has had an answer
        if seen.failed or seen.calls < clients:
            raise click.ClickException(f"{seen.calls} calls before the first restart, {seen.failed} failed")
        try:
            for _ in track(range(count), "restarts", disable=not sys.stdout.isatty()):
                time.sleep(0.5)
                process.kill()
                process.wait()
                seen.served.clear()
                time.sleep(away)
                process = start(port)
                wait_ready(url, process)
                seen.restarts += 1
                wait_served(seen, clients)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
        finally:
            seen.stopped = True
            for thread in threads:
                thread.join(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    report(seen)


def wait_served(seen: Seen, clients: int) -> None:
    """Wait until every client has had an answer of the restarted server, at most for a deadline."""
    end = time.monotonic() + DEADLINE_S
    while len(seen.served) < clients and time.monotonic() < end:
        time.sleep(0.02)


def report(seen: Seen) -> None:
    """Print and store the figures; end with status 1 if a call failed."""
    OUT.mkdir(exist_ok=True)
    (OUT / "restarts.json").write_text(
        json.dumps({"machine": machine.describe()} | asdict(seen) | {"served": len(seen.served)})
    )
    click.echo(
        f"{seen.restarts} restarts: {seen.calls} calls, {seen.failed} failed, {seen.wrong} wrong, "
        f"longest {seen.longest_s:.1f} s of at most {DEADLINE_S:.0f} s"
    )
    for error in seen.errors[:5]:
        click.echo(f"  {error}", err=True)
    if seen.failed or seen.wrong or seen.longest_s > DEADLINE_S + 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
