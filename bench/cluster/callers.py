"""Callers in a closed loop: each sends its next request as soon as the last one is answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from statistics import quantiles

from bench.raw_client import Connection

PATIENCE_S = 120.0


@dataclass
class Turn:
    """The answers of one phase."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200
    refused: dict[int, int] = field(default_factory=dict)  # status → answers

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def ms(self, percent: int) -> float:
        """Return a percentile of the latencies in milliseconds."""
        if len(self.latencies) < 2:
            return float("nan")
        return round(quantiles(self.latencies, n=100, method="inclusive")[percent - 1] * 1e3, 2)

    def add(self, other: Turn) -> None:
        """Add the answers of another phase."""
        self.seconds += other.seconds
        self.latencies += other.latencies
        for status, count in other.refused.items():
            self.refused[status] = self.refused.get(status, 0) + count


async def closed_loop(port: int, sent: bytes, callers: int, seconds: float) -> Turn:
    """Let `callers` send the same request for `seconds`."""
    turn, connections = Turn(), [Connection(port) for _ in range(callers)]
    start = time.perf_counter()
    end = start + seconds

    async def call(connection: Connection) -> None:
        while (began := time.perf_counter()) < end:
            answer = await connection.ask(sent, PATIENCE_S)
            if answer.status == 200:
                turn.latencies.append(time.perf_counter() - began)
            else:
                turn.refused[answer.status] = turn.refused.get(answer.status, 0) + 1
                await asyncio.sleep(0.05)

    try:
        await asyncio.gather(*(call(one) for one in connections))
    finally:
        for one in connections:
            one.close()
    turn.seconds = time.perf_counter() - start
    return turn
