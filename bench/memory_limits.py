"""A server whose memory is limited and freed again under requests: what do callers get, and when is it back?

    python -m bench.memory_limits                     # 1,000 requests
    python -m bench.memory_limits --requests 200 --least 8

In each round the address space of the server (`RLIMIT_AS`) is limited to its size at that moment and a few MiB more,
20 requests of different sizes are sent at once, and the limit is lifted. Every model must then answer 200 within 5 s. A
500 makes the command fail. A process that ends is started again and counted, as a supervisor would. Linux only.
"""

from __future__ import annotations

import json
import math
import random
import resource
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import psutil
from bench import machine
from bench.local_server import running_server
from bench.workload import MINILM, write_checkpoint

OUT = Path(__file__).resolve().parent / "out"
LARGE, SMALL = "bench/large", "sie/mini-en"
SPARE_MIB = (1, 4, 8, 16, 32, 64)
AT_ONCE, IN_A_ROW = 4, 5
BACK_S = 5.0
WORDS = ["rain", "falls", "over", "the", "quiet", "harbour", "stars", "burn", "hydrogen"]
BYTES_OF_TEXT = 3 << 20  # of the large body, which is decoded on a thread


@dataclass
class Seen:
    """The answers under a limit, and after it was lifted."""

    limited: Counter[str] = field(default_factory=Counter)
    lifted: Counter[str] = field(default_factory=Counter)
    back_s: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)  # processes, by the spare MiB


def body(rng: random.Random) -> dict[str, object]:
    """Return a request: mostly small ones, some that need memory in decoding, tokenising or the forward pass."""
    items, words = rng.choice([1, 2, 20, 60]), rng.choice([3, 40, 150])
    texts = [" ".join(rng.choices(WORDS, k=words)) for _ in range(items)]
    if rng.random() < 0.05:
        texts = ["rain falls " * (BYTES_OF_TEXT // 11)]
    return {"query": {"text": "rain"}, "items": [{"text": text} for text in texts]}


def ask(url: str, model: str, asked: dict[str, object]) -> str:
    """Return status and code of an answer, or the class of the error without one."""
    try:
        reply = httpx.post(
            f"{url}/v1/score/{model}", json=asked, headers={"accept": "application/json"}, timeout=120
        )
    except httpx.HTTPError as error:
        return type(error).__name__
    if reply.status_code == 200:
        return "200"
    try:
        return f"{reply.status_code} {reply.json()['code']}"
    except (ValueError, KeyError):
        return f"{reply.status_code} without a code"


def limit(pid: int, spare_mib: int | None) -> None:
    """Limit the address space of a process to its size and `spare_mib`; None lifts the limit."""
    most = -1
    if spare_mib is not None:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (spare_mib << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (most, -1))


def under_limit(url: str, rng: random.Random, seen: Seen) -> None:
    """Send `IN_A_ROW` requests on each of `AT_ONCE` threads."""
    asked = [[(rng.choice([LARGE, SMALL]), body(rng)) for _ in range(IN_A_ROW)] for _ in range(AT_ONCE)]

    def send(part: list[tuple[str, dict[str, object]]]) -> None:
        for model, each in part:
            seen.limited[ask(url, model, each)] += 1

    threads = [threading.Thread(target=send, args=(part,)) for part in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def back(url: str, seen: Seen) -> float | None:
    """Return the seconds until every model answers 200, or None after three times the allowed time."""
    began = time.monotonic()
    while time.monotonic() - began < 3 * BACK_S:
        small = {"query": {"text": "rain"}, "items": [{"text": "stars burn"}]}
        answers = [ask(url, model, small) for model in (LARGE, SMALL)]
        seen.lifted.update(answers)
        if answers == ["200", "200"]:
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def rounds(directory: Path, left: int, spare: list[int], rng: random.Random, log: Path, seen: Seen) -> int:
    """Run rounds on one server process until it ends or no requests are left; return how many are left."""
    flags = ("--model", f"{LARGE}={directory}", "--batch-tokens", "16384", "--no-access-log")
    environment = {"PYTHONFAULTHANDLER": "1"}  # the log shows where a signal ended the process
    with (
        log.open("ab") as file,
        running_server(SMALL, flags=flags, environment=environment, log=file) as server,
    ):
        process = server.process
        for model in (LARGE, SMALL):
            ask(server.url, model, body(rng))
        while left > 0:
            mib = rng.choice(spare)
            limit(process.pid, mib)
            under_limit(server.url, rng, seen)
            left -= AT_ONCE * IN_A_ROW
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                limit(process.pid, None)
                seconds = back(server.url, seen)
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                seen.ended[f"{mib} MiB to spare"] += 1
                return left
            seen.back_s.append(math.inf if seconds is None else seconds)
    return left


@click.command(help=__doc__)
@click.option("--requests", default=1000, show_default=True, help="Number of requests under limits.")
@click.option("--least", default=1, show_default=True, help="Leave out limits with fewer MiB to spare.")
@click.option("--seed", default=0, show_default=True)
def main(requests: int, least: int, seed: int) -> None:
    spare = [mib for mib in SPARE_MIB if mib >= least] or [least]
    seen, rng = Seen(), random.Random(seed)
    OUT.mkdir(exist_ok=True)
    log = OUT / "memory_limits.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(MINILM, Path(folder))
        left = requests
        while left > 0:
            left = rounds(directory, left, spare, rng, log, seen)
    report(seen, log)


def report(seen: Seen, log: Path) -> None:
    """Print and store the figures; end with status 1 after a 500, or if a model did not come back in time."""
    longest = max(seen.back_s, default=math.inf)
    for name, counts in (("limited", seen.limited), ("lifted", seen.lifted), ("processes ended", seen.ended)):
        click.echo(f"{name}: " + (", ".join(f"{n} x {what}" for what, n in counts.most_common()) or "none"))
    click.echo(f"{len(seen.back_s)} limits lifted; longest until both models answered 200: {longest:.1f} s")
    figures = {"machine": machine.describe(), "limited": seen.limited, "lifted": seen.lifted}
    (OUT / "memory_limits.json").write_text(
        json.dumps(figures | {"ended": seen.ended, "longest_s": longest, "log": log.name})
    )
    wrong = [what for what in seen.limited | seen.lifted if what.startswith("500")]
    if wrong or longest > BACK_S:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
