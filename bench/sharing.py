"""One client in many processes, threads and event loops: does every call get the answer to its own texts?

    python -m bench.sharing                                   # at least 10,000 calls of each client
    python -m bench.sharing --calls 1000 --client python

Every answer is compared with the one that a single client got for the same texts beforehand. A call that fails or has
the scores of other texts makes the command fail. The TypeScript client needs Node 20 and `npm ci` in its folder; the
command builds it. Everything runs on the loopback interface.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from bench import machine
from bench.local_server import running_server
from bench.workload import natural_texts

from sie_sdk import Item, SIEAsyncClient, SIEClient, SIEError

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
TYPESCRIPT = HERE.parent / "packages" / "sie-ts-sdk"
MODEL, OPTIONS = "sie/mini-en", {"normalize": "none"}  # logits differ more than scores near 0 and 1 do
SAME = 1e-3  # logits of one text in fp32, in any batch
OTHER = 1e-2  # logits of different texts, at least
QUERIES, ITEMS, AT_ONCE = 200, 3, 20


@dataclass
class Count:
    """The calls of one way to share a client."""

    calls: int = 0
    wrong: int = 0
    failed: int = 0

    def add(self, other: Count) -> None:
        """Add the calls of a thread or process."""
        self.calls += other.calls
        self.wrong += other.wrong
        self.failed += other.failed


@dataclass
class Shared:
    """Two clients that are shared, the texts of their calls, and the logits of each query."""

    client: SIEClient
    async_client: SIEAsyncClient
    queries: list[str]
    items: list[Item]
    logits: list[list[float]]

    def check(self, number: int, result: Any, count: Count) -> None:
        """Count an answer, or the error of a call."""
        count.calls += 1
        if isinstance(result, SIEError):
            count.failed += 1
            click.echo(f"  {result}", err=True)
        elif not same(by_item(result), self.logits[number]):
            count.wrong += 1

    def calls(self, count: int, seed: int) -> Count:
        """Call in a loop on this thread."""
        found, rng = Count(), random.Random(seed)
        for _ in range(count):
            number = rng.randrange(QUERIES)
            try:
                query = Item(text=self.queries[number])
                result: Any = self.client.score(MODEL, query, self.items, options=OPTIONS)
            except SIEError as error:
                result = error
            self.check(number, result, found)
        return found

    def threads(self, count: int, seed: int, threads: int = 4) -> Count:
        """Call on several threads."""
        return total(threads, lambda k: self.calls(math.ceil(count / threads), seed + k))

    def loops(self, count: int, seed: int) -> Count:
        """Call in event loops, one after another, each with many calls at once."""
        found = Count()
        for k in range(math.ceil(count / AT_ONCE)):
            found.add(asyncio.run(self._burst(seed + k)))
        return found

    async def _burst(self, seed: int) -> Count:
        found, rng = Count(), random.Random(seed)

        async def one(number: int) -> None:
            query = Item(text=self.queries[number])
            try:
                result: Any = await self.async_client.score(MODEL, query, self.items, options=OPTIONS)
            except SIEError as error:
                result = error
            self.check(number, result, found)

        await asyncio.gather(*(one(rng.randrange(QUERIES)) for _ in range(AT_ONCE)))
        return found

    def processes(self, start: str, count: int, seed: int, processes: int = 5) -> Count:
        """Call in child processes, each with threads and event loops, and at the same time on threads of this one."""
        context: Any = multiprocessing.get_context(start)
        answers = context.SimpleQueue()
        share = math.ceil(count / (processes + 1))
        found = Count()
        parent = threading.Thread(target=lambda: found.add(self.threads(share, seed, 4)))
        parent.start()
        children = [
            context.Process(target=child, args=(answers, self, share, seed + 1000 * k + 1))
            for k in range(processes)
        ]
        for process in children:
            process.start()
        for _ in children:
            found.add(answers.get())
        for process in children:
            process.join()
        parent.join()
        return found


def child(answers: Any, shared: Shared, count: int, seed: int) -> None:
    """Run in a child process, with the clients of its parent."""
    found = shared.threads(math.ceil(count / 2), seed, 2)
    found.add(shared.loops(count // 2, seed + 100))
    answers.put(found)


def total(threads: int, work: Callable[[int], Count]) -> Count:
    """Run `work(k)` on threads at once, and return the sum."""
    counts: list[Count] = []
    running = [threading.Thread(target=lambda k=k: counts.append(work(k))) for k in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    found = Count()
    for count in counts:
        found.add(count)
    return found


def by_item(result: Any) -> list[float]:
    """Return the scores of an answer in the order of the items."""
    scores = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [scores[f"item-{k}"] for k in range(ITEMS)]


def same(found: list[float], expected: list[float], tolerance: float = SAME) -> bool:
    return all(abs(a - b) < tolerance for a, b in zip(found, expected, strict=True))


def prepare(url: str) -> Shared:
    """Return clients that have been used once, and the right answers, which differ from each other."""
    items = [Item(text=text) for text in natural_texts(ITEMS, 8.0)]
    logits: dict[str, list[float]] = {}
    for query in natural_texts(2 * QUERIES, 12.0):
        with SIEClient(url) as client:
            found = by_item(client.score(MODEL, Item(text=query), items, options=OPTIONS))
        if not any(same(found, others, OTHER) for others in logits.values()):
            logits[query] = found
        if len(logits) == QUERIES:
            break
    else:
        raise click.ClickException("too many queries have the same scores; a wrong answer would pass")
    shared = Shared(SIEClient(url), SIEAsyncClient(url), list(logits), items, list(logits.values()))
    shared.client.score(
        MODEL, Item(text=shared.queries[0]), items
    )  # opens the connection that a fork would share
    return shared


def python(shared: Shared, calls: int) -> dict[str, Count]:
    """Share the Python clients in every way; at least `calls` in all."""
    part = math.ceil(calls / 6)
    return {
        "threads": shared.threads(part, 1, 8),
        "event loops, one after another": shared.loops(part, 10_000),
        "event loops, at once": total(4, lambda k: shared.loops(math.ceil(part / 4), 20_000 + 5000 * k)),
        **{
            f"processes ({start}), threads and loops": shared.processes(start, part, 50_000 * (k + 1))
            for k, start in enumerate(("fork", "spawn", "forkserver"))
        },
    }


def typescript(url: str, shared: Shared, calls: int) -> dict[str, Count]:
    """Share the TypeScript client in every way; at least `calls` in all. Raises CalledProcessError."""
    subprocess.run(["npm", "--silent", "run", "build"], cwd=TYPESCRIPT, check=True)
    task = {
        "url": url,
        "model": MODEL,
        "options": OPTIONS,
        "queries": shared.queries,
        "items": shared.items,
        "logits": shared.logits,
        "same": SAME,
        "calls": calls,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task))
        command = ["node", str(HERE / "sharing.mjs"), str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return {way: Count(**count) for way, count in json.loads(done.stdout).items()}


@click.command(help=__doc__)
@click.option("--calls", default=10_000, show_default=True, help="Number of calls of each client.")
@click.option(
    "--client", type=click.Choice(["python", "typescript", "both"]), default="both", show_default=True
)
def main(calls: int, client: str) -> None:
    found: dict[str, dict[str, Count]] = {}
    with running_server(MODEL, flags=("--dtype", "float32", "--no-access-log")) as server:
        shared = prepare(server.url)
        for name, run in (
            ("python", lambda: python(shared, calls)),
            ("typescript", lambda: typescript(server.url, shared, calls)),
        ):
            if client in (name, "both"):
                began = time.monotonic()
                found[name] = run()
                report(name, found[name], time.monotonic() - began)
    OUT.mkdir(exist_ok=True)
    counts = {name: {way: asdict(count) for way, count in ways.items()} for name, ways in found.items()}
    (OUT / "sharing.json").write_text(json.dumps({"machine": machine.describe()} | counts))
    if any(count.wrong or count.failed for ways in found.values() for count in ways.values()):
        raise SystemExit(1)


def report(name: str, ways: dict[str, Count], seconds: float) -> None:
    """Print the counts of a client."""
    everything = Count()
    for way, count in ways.items():
        everything.add(count)
        click.echo(f"  {way:42} {count.calls:6} calls {count.wrong:4} wrong {count.failed:4} failed")
    click.echo(
        f"{name}: {everything.calls} calls in {seconds:.0f} s, "
        f"{everything.wrong} wrong, {everything.failed} failed"
    )


if __name__ == "__main__":
    main()
