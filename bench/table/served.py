"""The cells of the server: clients send requests over HTTP to one server per format, which alternate.

infinity is a contender here if its command is found. It needs an environment of its own, because it requires older
versions of numpy and sentence-transformers than this engine's tests.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
from bench.local_server import running_server
from bench.table.entries import Entry
from bench.table.offline import Say
from bench.table.plan import CLIENTS, Cell, Load
from bench.table.process import Failed
from bench.workload import corpus_words

from sie_server.loadtest.errors import LoadTestError
from sie_server.loadtest.probe import Endpoint, probe
from sie_server.loadtest.report import row
from sie_server.loadtest.run import Outcome, Plan, run

MODEL = "bench/model"
INFINITY, INFINITY_COMMAND = "infinity, bf16", "infinity_emb"
NEEDS_INFINITY = (
    "not installed: the command infinity_emb of an environment with `pip install infinity-emb[server,torch]`"
)
START_WITHIN = 120.0
ROUNDS = 2
PER_CLIENT = 2  # answers that each client should get in a phase
SIZES = (1000, 500, 200, 100, 50, 20, 10, 5, 2, 1)  # documents of a request
TIMEOUT = 120.0
PHASE = (0.5, 20.0)  # seconds, least and most
TINY_PHASE = (0.5, 0.5)
QUERY_WORDS = 8


@dataclass(frozen=True)
class Served:
    """A running server, by its label."""

    label: str
    endpoint: Endpoint
    process: psutil.Process


@dataclass
class ServedResult:
    """One cell of the server: the phases of each contender for each number of clients, and peak memory in MiB."""

    cell: Cell
    load: Load
    documents: dict[int, int]  # clients → documents of a request
    phases: dict[int, dict[str, list[Outcome]]]
    memory: dict[str, float]
    absent: dict[str, str] = field(default_factory=dict)


@contextmanager
def servers(
    entries: Sequence[Entry],
    directory: Path,
    threads: int,
    log: IO[bytes],
    infinity: str | None,
    absent: dict[str, str],
) -> Iterator[list[Served]]:
    """Start a server per format, and infinity unless it is ""; `absent` gets the reasons of those that cannot run."""
    with ExitStack() as stack:
        found = []
        for entry in entries:
            if entry.library == "ours":
                found += _started(stack, entry.label, partial(_sie, entry, directory, threads, log), absent)
        command = None if infinity == "" else shutil.which(infinity or INFINITY_COMMAND)
        if command:
            found += _started(stack, INFINITY, partial(_infinity, command, directory, threads, log), absent)
        elif infinity != "":
            absent[INFINITY] = NEEDS_INFINITY
        yield found


def _started(stack: ExitStack, label: str, start: Any, absent: dict[str, str]) -> list[Served]:
    try:
        return [stack.enter_context(start())]
    except (Failed, RuntimeError, LoadTestError) as error:
        absent[label] = str(error)
        return []


@contextmanager
def _sie(entry: Entry, directory: Path, threads: int, log: IO[bytes]) -> Iterator[Served]:
    if reason := entry.missing():
        raise Failed(reason)
    # clients repeat documents, and the benchmark measures the model, not its cache
    flags = ("--dtype", entry.dtype, "--threads", str(threads), "--document-cache-mb", "0")
    with running_server(f"{MODEL}={directory}", flags=flags, log=log) as server:
        assert server.process
        yield Served(entry.label, probe(server.url, "sie", MODEL, "", TIMEOUT), server.process)


@contextmanager
def _infinity(command: str, directory: Path, threads: int, log: IO[bytes]) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        "--host",
        "127.0.0.1",
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "--no-bettertransformer",
    ]
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    pools = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    process = subprocess.Popen(
        [
            command,
            "v2",
            "--model-id",
            str(directory),
            "--served-model-name",
            MODEL,
            "--port",
            str(port),
            *flags,
        ],
        env={**own, **offline, **pools},
        stdout=log,
        stderr=log,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield Served(INFINITY, probe(url, "infinity", MODEL, "", TIMEOUT), psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_WITHIN
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failed(f"it ended with status {process.returncode}; see table.log")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise Failed(f"not ready within {START_WITHIN:.0f} s; see table.log")


def measure(
    cell: Cell,
    load: Load,
    texts: Sequence[str],
    found: Sequence[Served],
    seconds: float,
    per_document: float,
    bounds: tuple[float, float],
    say: Say,
) -> ServedResult | None:
    """Run all numbers of clients for about `seconds`; None if that is too short.

    `bounds` are the shortest and the longest time of a phase in seconds.
    `per_document` is the time of the slowest contender for one document, in seconds.
    """
    phase = seconds / (len(CLIENTS) * len(found) * (ROUNDS + 0.5)) if found else 0.0
    if phase < bounds[0]:
        return None
    phase = min(phase, bounds[1])
    result = ServedResult(cell, load, {}, {}, {})
    for served in found:
        run(served.endpoint, Plan(1, min(20, load.documents), 1.0, 2), partial(_source, texts, 20))
    for clients in CLIENTS:
        most = phase / (clients * per_document * PER_CLIENT)
        documents = next((size for size in SIZES if size <= min(most, load.documents)), 1)
        result.documents[clients] = documents
        result.phases[clients] = {served.label: [] for served in found}
        for done in range(ROUNDS):
            say(f"{cell.name}: {clients} clients × {documents} documents, round {done + 1}")
            for served in found:
                plan = Plan(clients, documents, phase, 100_000, seed=done)
                source = partial(_source, texts, documents)
                result.phases[clients][served.label].append(run(served.endpoint, plan, source))
                resident = _resident_mib(served.process)
                result.memory[served.label] = max(result.memory.get(served.label, 0.0), resident)
    return result


def _source(texts: Sequence[str], documents: int, client: int) -> Iterator[tuple[str, list[str]]]:
    rng, known = random.Random(client), corpus_words()
    while True:
        yield " ".join(rng.choices(known, k=QUERY_WORDS)), rng.sample(texts, min(documents, len(texts)))


def _resident_mib(process: psutil.Process) -> float:
    try:
        family = [process, *process.children(recursive=True)]
        return sum(float(each.memory_info().rss) for each in family) / 2**20
    except psutil.Error:  # it has ended, and its requests have failed
        return 0.0


def merged(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures of several rounds as those of one phase."""
    whole = Outcome(outcomes[0].plan)
    for outcome in outcomes:
        whole.latencies += outcome.latencies
        whole.failures.update(outcome.failures)
        whole.details |= outcome.details
        whole.last += outcome.last
    return row(whole)


def as_json(result: ServedResult) -> dict[str, Any]:
    """Return all figures of a cell."""
    phases = {
        str(clients): {label: [row(outcome) for outcome in outcomes] for label, outcomes in found.items()}
        for clients, found in result.phases.items()
    }
    return {
        "row": result.cell.name,
        "documents": {str(clients): documents for clients, documents in result.documents.items()},
        "phases": phases,
        "peak_mib": {label: round(value) for label, value in result.memory.items()},
        "absent": result.absent,
    }
