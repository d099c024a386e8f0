"""The overhead of HTTP, queue and client over a forward pass: one caller, one request after the other.

    python -m bench.overhead
    python -m bench.overhead --threads 1       # on a machine with other work, which disturbs OpenMP

The model is tiny (BERT 2×32), so that the overhead dominates. The server is a separate process; the direct call
(tokenise + run, in this process) is made while the server is idle. Blocks of each kind of call alternate.
"""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx
from bench import contenders, machine
from bench.local_server import Server, running_server
from bench.raw_client import request
from bench.workload import MINILM, QUERY, TOY, Shape, natural_texts, write_checkpoint
from rich.console import Console
from rich.table import Table

from sie_sdk import Item, SIEClient
from sie_server.engine.calibration import calibrate
from sie_server.engine.device import use_cpu_threads
from sie_server.engine.engine import Engine

OUT = Path(__file__).resolve().parent / "out"
MODEL = "bench/model"
SHAPES = {"toy": TOY, "minilm": MINILM}
TARGET_MS = 2.0  # at 1×1, SDK over direct
BLOCK = 50  # calls of one kind in a row
SERVER_TIMES = ("total", "queue", "tokenization", "inference")
console = Console(width=None if Console().is_terminal else 120)


class RawCalls:
    """A kept connection that sends prepared bytes in one piece, as curl and clients in C, Go or Node do."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sent = request("POST", f"/v1/score/{MODEL}", body)

    def __call__(self) -> None:
        self._socket.sendall(self._sent)
        head, _, body = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {head[:100]!r}")
        left = int(head.lower().partition(b"content-length:")[2].split()[0]) - len(body)
        while left > 0:
            left -= len(self._receive())

    def _until(self, end: bytes) -> bytes:
        received = b""
        while end not in received:
            received += self._receive()
        return received

    def _receive(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise ConnectionError("the server has closed the connection")
        return part


class Calls:
    """Ways of making the same request; each method is one call."""

    def __init__(
        self, documents: list[str], engine: Engine, sdk: SIEClient, http: httpx.Client, url: str
    ) -> None:
        self._documents = documents
        self._engine = engine
        self._sdk = sdk
        self._http = http
        self._items = [Item(text=text) for text in documents]
        self._body = {"query": {"text": QUERY}, "items": [{"text": text} for text in documents]}
        self.bytes = RawCalls(url, self._body)
        self.server_times: dict[str, list[float]] = {name: [] for name in SERVER_TIMES}

    def direct(self) -> None:
        contenders.ours(self._engine, self._documents)

    def sdk(self) -> None:
        self._sdk.score(MODEL, Item(text=QUERY), self._items)

    def raw(self) -> None:
        reply = self._http.post(f"/v1/score/{MODEL}", json=self._body).raise_for_status()
        for name, times in self.server_times.items():
            times.append(float(reply.headers[f"x-{name}-time"]))


def milliseconds(call: Callable[[], Any], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def alternate(calls: Calls, count: int) -> dict[str, list[float]]:
    """Measure `count` calls of each kind, in alternating blocks."""
    kinds = {"direct": calls.direct, "sdk": calls.sdk, "raw": calls.raw, "bytes": calls.bytes}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for call in kinds.values():
        milliseconds(call, min(count, BLOCK))  # warm
    for server_times in calls.server_times.values():
        server_times.clear()
    for done in range(0, count, BLOCK):
        for kind, call in kinds.items():
            time.sleep(0.02)
            times[kind] += milliseconds(call, min(BLOCK, count - done))
    return times


def measure(server: Server, directory: Path, shape: Shape, documents: int, count: int) -> dict[str, Any]:
    engine = Engine(directory, device="cpu")
    calibrate(engine)
    texts = natural_texts(documents, shape.median_words)
    with SIEClient(server.url) as sdk, httpx.Client(base_url=server.url, timeout=60) as http:
        calls = Calls(texts, engine, sdk, http, server.url)
        with machine.Bystanders() as others:
            server_cpu = server.cpu_seconds
            start = time.perf_counter()
            times = alternate(calls, count)
            server_cores = (server.cpu_seconds - server_cpu) / (time.perf_counter() - start)
    direct = statistics.median(times["direct"])
    return {
        "documents": documents,
        "calls": count,
        "median_ms": {kind: round(statistics.median(values), 3) for kind, values in times.items()},
        "p99_ms": {kind: round(statistics.quantiles(values, n=100)[98], 3) for kind, values in times.items()},
        "overhead_ms": {k: round(statistics.median(times[k]) - direct, 3) for k in ("sdk", "raw", "bytes")},
        "server_ms": {name: round(statistics.median(v), 3) for name, v in calls.server_times.items()},
        "other_cores": round(max(0.0, others.cores - server_cores), 2),
    }


def show(results: list[dict[str, Any]]) -> None:
    table = Table("request", "call", title="overhead, ms", title_justify="left", box=None)
    for heading in ("median", "p99", "over direct"):
        table.add_column(heading, justify="right")
    labels = {"direct": "engine in this process", "sdk": "SIEClient.score", "raw": "httpx, keep-alive, JSON"}
    labels["bytes"] = "bytes over a kept connection, JSON"
    for result in results:
        for kind, label in labels.items():
            over = result["overhead_ms"].get(kind)
            table.add_row(
                f"1×{result['documents']}",
                label,
                f"{result['median_ms'][kind]:.2f}",
                f"{result['p99_ms'][kind]:.2f}",
                "" if over is None else f"{over:+.2f}",
            )
    console.print(table)
    for result in results:
        inside = ", ".join(f"{name} {value:.2f}" for name, value in result["server_ms"].items())
        console.print(
            f"1×{result['documents']}: medians inside the server, ms: {inside}; "
            f"other processes used {result['other_cores']:.2f} cores"
        )


def verdict(results: list[dict[str, Any]]) -> str:
    over = next(r["overhead_ms"]["sdk"] for r in results if r["documents"] == 1)
    word = "[green]ok[/]" if over <= TARGET_MS else "[red]over[/]"
    return f"SDK over direct at 1×1: {over:.2f} ms, target ≤ {TARGET_MS} ms: {word}"


@click.command()
@click.option(
    "--calls", "count", type=click.IntRange(20, 10_000), default=500, show_default=True, help="At 1×1."
)
@click.option("--shape", type=click.Choice(list(SHAPES)), default="toy", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads of both sides; 0: all cores.")
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(count: int, shape: str, threads: int, out: Path) -> None:
    """Compare calls through the server with calls to the engine; 1×1 and 1×100."""
    contenders.quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(SHAPES[shape], Path(folder))
        use_cpu_threads(threads)
        with running_server(f"{MODEL}={directory}", flags=("--threads", str(threads))) as server:
            results = [
                measure(server, directory, SHAPES[shape], n, calls)
                for n, calls in ((1, count), (100, max(20, count // 5)))
            ]
    show(results)
    console.print(verdict(results))
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.describe(), "requests": results}
    (out / "overhead.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print("wrote overhead.json")


if __name__ == "__main__":
    main()
