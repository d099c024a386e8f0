"""Requests whose first batches run while their later texts are tokenised, compared with requests tokenised as a whole.

    python -m bench.early_start --card-rate 1500000     # a card that computes on its own, simulated by waiting
    python -m bench.early_start                         # a forward pass on this machine's cores

Calls of both kinds alternate in one process, without HTTP. A simulated card answers a batch after its tokens divided by
the rate, and its scores are 0. On a CPU the server tokenises requests as a whole; here it is made to do both.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from bench import contenders
from bench.workload import MINILM, QUERY, TOY, natural_texts, write_checkpoint

from sie_server.config import ServerConfig
from sie_server.engine.engine import Engine
from sie_server.engine.job import Work
from sie_server.serving import service as service_module
from sie_server.serving.growing import pieces
from sie_server.serving.metrics import RequestTiming
from sie_server.serving.service import Service
from sie_server.wire import Item, ScoreRequest

SHAPES = {"toy": TOY, "minilm": MINILM}
WARM = 3  # rounds that are not counted; the tokens per character are learned in them


class Card:
    """Runs batches one after the other at `rate` tokens per second, without a core."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free = rate, 0.0

    def launch(self, works: list[Work]) -> Flight:
        self._free = max(self._free, time.perf_counter()) + sum(len(w.tokens) for w in works) / self._rate
        return Flight(self._free, len(works))


class Flight:
    """A batch on the card."""

    def __init__(self, end: float, works: int) -> None:
        self._end, self._works = end, works

    def finish(self) -> list[float]:
        time.sleep(max(0.0, self._end - time.perf_counter()))
        return [0.0] * self._works


async def alternate(service: Service, request: ScoreRequest, rounds: int) -> dict[bool, list[float]]:
    """Return the milliseconds of requests that were tokenised in pieces (True) and as a whole (False)."""
    times: dict[bool, list[float]] = {True: [], False: []}

    def divided(plans: Any, adapter: Any, tokens: int, timing: Any) -> list[list[int]]:
        batches = tokens / plans[0].engine.batch_tokens
        return pieces(plans[0].read_texts, plans[0].sizes, batches) if early and batches > 1 else []

    with patch.object(service_module, "divided", divided):
        for number in range(WARM + rounds):
            for early in (False, True):
                start = time.perf_counter()
                await service.score("m", request, RequestTiming())
                if number >= WARM:
                    times[early].append((time.perf_counter() - start) * 1e3)
    return times


async def measure(directory: Path, request: ScoreRequest, threads: int, batch: int, rounds: int) -> None:
    service = Service(
        ServerConfig(model=[f"m={directory}"], device="cpu", threads=threads, batch_tokens=batch)
    )
    await service.preload()
    times = await alternate(service, request, rounds)
    await service.close()
    for early, name in ((False, "as a whole"), (True, "in pieces")):
        print(f"{name}: median {statistics.median(times[early]):.1f} ms, least {min(times[early]):.1f} ms")
    ratios = [piece / whole for piece, whole in zip(times[True], times[False], strict=True)]
    print(f"in pieces / as a whole, median of {rounds} pairs: {statistics.median(ratios):.3f}")


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="toy", show_default=True)
@click.option("--documents", type=int, default=1000, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads of a forward pass.")
@click.option(
    "--card-rate", type=float, default=0.0, help="Tokens per second of a simulated card; 0: the CPU."
)
@click.option("--batch-tokens", type=int, default=8192, show_default=True)
@click.option("--rounds", type=int, default=12, show_default=True)
def main(shape: str, documents: int, threads: int, card_rate: float, batch_tokens: int, rounds: int) -> None:
    """Compare early batches with requests that are tokenised as a whole."""
    contenders.quiet_libraries()
    card = Card(card_rate)
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(SHAPES[shape], Path(folder))
        texts = natural_texts(documents, SHAPES[shape].median_words)
        request = ScoreRequest(Item(text=QUERY), [Item(text=text) for text in texts])
        simulated = patch.multiple(Engine, launch=lambda _, works: card.launch(works), overlap=1)
        if card_rate:
            simulated.start()
        asyncio.run(measure(directory, request, threads, batch_tokens, rounds))


if __name__ == "__main__":
    main()
