"""Memory of a service that repeatedly loads models, answers requests and unloads models, in this process.

    python -m bench.lifecycle

Two models alternate: a cross-encoder (MiniLM-L6, random weights) and the embedded model, whose documents are cached.
Resident memory is read while no model is loaded.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
from bench import machine
from bench.workload import MINILM, QUERY, natural_texts, write_checkpoint
from rich.console import Console

from sie_server.config import ServerConfig
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.service import Service
from sie_server.wire import Item, ScoreRequest

OUT = Path(__file__).resolve().parent / "out"
MODEL, EMBEDDED = "bench/minilm", "sie/mini-en"
BASE_CYCLE = 10  # by then all libraries have allocated the memory that they keep
ALLOWED = 0.05
DOCUMENTS, MEDIAN_WORDS, AT_ONCE = 3, 20.0, 4
console = Console(width=None if Console().is_terminal else 120)


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


async def cycle(service: Service, model: str, requests: int, texts: list[str]) -> None:
    """Load the model, answer `requests` requests, AT_ONCE of them concurrently, and unload it."""
    await service.admin.load(model)
    waiting = iter(range(requests))

    async def client() -> None:
        for i in waiting:
            start = DOCUMENTS * i % (len(texts) - DOCUMENTS)
            items = [Item(text=text) for text in texts[start : start + DOCUMENTS]]
            await service.score(model, ScoreRequest(Item(text=QUERY), items), RequestTiming())

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    answer = await service.admin.unload(model)
    assert answer.memory_bytes == 0, answer


async def measure(directory: Path, cycles: int, requests: int, dtype: Any) -> list[float]:
    """Return the resident memory after each cycle in MiB."""
    config = ServerConfig(model=(f"{MODEL}={directory}",), device="cpu", dtype=dtype, offline=True)
    service = Service(config)
    texts = natural_texts(500, MEDIAN_WORDS)
    resident = []
    try:
        for i in range(cycles):
            await cycle(service, (MODEL, EMBEDDED)[i % 2], math.ceil(requests / cycles), texts)
            resident.append(resident_mib())
            if (i + 1) % 10 == 0:
                console.print(f"after cycle {i + 1:3}: {resident[-1]:7.1f} MiB")
    finally:
        await service.close()
    return resident


@click.command()
@click.option("--cycles", type=click.IntRange(BASE_CYCLE + 1), default=60, show_default=True)
@click.option(
    "--requests", type=click.IntRange(1), default=5000, show_default=True, help="Total of all cycles."
)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=OUT, help="Directory for the report.")
def main(cycles: int, requests: int, dtype: str, out: Path) -> None:
    """Load and unload models, and check that resident memory stays within 5 % of its value after ten cycles."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # a separate process, so that memory used to create the checkpoint is not measured
        making = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=(MINILM, Path(folder))
        )
        making.start()
        making.join()
        resident = asyncio.run(measure(Path(folder), cycles, requests, dtype))
    base, end = resident[BASE_CYCLE - 1], resident[-1]
    within = abs(end / base - 1) <= ALLOWED
    console.print(
        f"{cycles} cycles, {requests} requests in {time.perf_counter() - began:.0f} s: {base:.1f} MiB after cycle "
        f"{BASE_CYCLE}, {end:.1f} MiB at the end, × {end / base:.3f} (allowed ± {ALLOWED:.0%}): "
        f"{'[green]ok[/]' if within else '[red]over[/]'}"
    )
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.describe(), "resident_mib": [round(r, 1) for r in resident]}
    (out / "lifecycle.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print("wrote lifecycle.json")
    if not within:
        sys.exit(1)


if __name__ == "__main__":
    main()
