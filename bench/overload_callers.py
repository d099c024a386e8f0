"""Callers of `bench.overload`: arrivals at random times, callers that probe, and callers in a closed loop.

All are tasks of one event loop that send prepared bytes, so that the client costs little compared with the server.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field

from bench.raw_client import Answer, Connection, request
from bench.workload import natural_texts

MODEL = "sie/mini-en"
PATIENT_S = 60.0
MOST_OPEN = 900  # connections, fewer than the server's max_connections
PROBE_EVERY_S = 0.1
ACCEPTED_S = 1.0  # a request that has not been refused after this time has been accepted
CHEAP = request("GET", "/v1/score/x")  # answered with 405


def bodies(documents: int, count: int = 32, headers: str = "", **options: object) -> list[bytes]:
    """Return score requests with different texts; `headers` are complete lines."""
    texts = natural_texts(documents * count, 30.0)
    found = []
    for i in range(count):
        items = [{"text": text} for text in texts[i * documents : (i + 1) * documents]]
        body = {"query": {"text": "why do stars explode"}, "items": items, "options": options}
        found.append(request("POST", f"/v1/score/{MODEL}", body, headers=headers))
    return found


@dataclass(frozen=True)
class Outcome:
    """One request: when it was sent, the seconds until its end, and the status (0: the caller left)."""

    at: float
    seconds: float
    status: int
    retry_after: float | None = None


@dataclass
class Crowd:
    """Outcomes of many callers in one phase."""

    port: int
    outcomes: list[Outcome] = field(default_factory=list)
    offered: int = 0  # arrivals
    not_sent: int = 0  # of these, beyond `MOST_OPEN`
    _idle: list[Connection] = field(default_factory=list)
    _open: int = 0

    async def one(self, sent: bytes, patience: float) -> Outcome:
        """Send one request over an idle or a new connection."""
        connection = self._idle.pop() if self._idle else Connection(self.port)
        at = time.perf_counter()
        try:
            answer: Answer | None = await connection.ask(sent, patience)
        except (OSError, EOFError, ValueError):
            answer = None
        self._idle.append(connection)
        seconds = time.perf_counter() - at
        outcome = (
            Outcome(at, seconds, answer.status, answer.retry_after) if answer else Outcome(at, seconds, 0)
        )
        self.outcomes.append(outcome)
        return outcome

    async def arrivals(self, sent: list[bytes], rate: float, seconds: float, patience: float) -> None:
        """Send requests at random times, `rate` a second on average, whether or not earlier ones are answered."""
        rng, now = random.Random(1), time.perf_counter()
        due, end = now, now + seconds
        tasks: set[asyncio.Task[Outcome]] = set()
        while (due := due + rng.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.offered += 1
            if len(tasks) >= MOST_OPEN:
                self.not_sent += 1
                continue
            task = asyncio.create_task(self.one(rng.choice(sent), patience))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(max(0.0, end - time.perf_counter()))
        for task in tasks:  # the overload ends here; these callers leave
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def turns(self, sent: list[bytes], callers: int, seconds: float, thinking: float = 0.0) -> None:
        """Run callers that send their next request after the answer, and a pause of `thinking` on average."""
        end = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            rng = random.Random(number)
            await asyncio.sleep(thinking * rng.random())
            while time.perf_counter() < end:
                await self.one(rng.choice(sent), PATIENT_S)
                await asyncio.sleep(thinking * (0.5 + rng.random()))

        await asyncio.gather(*map(caller, range(callers)))

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    def answered(self, start: float, end: float) -> list[Outcome]:
        """Return the requests that were answered with 200 in a span of time."""
        return [o for o in self.outcomes if o.status == 200 and start <= o.at + o.seconds < end]

    def percentile(self, share: float) -> float:
        """Return a percentile of the seconds of answered requests."""
        times = sorted(o.seconds for o in self.outcomes if o.status == 200)
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")

    @property
    def refused(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == 503]


@dataclass
class Probers:
    """Callers that, once refused, ask again every 100 ms until they are accepted."""

    told: list[float] = field(default_factory=list)  # Retry-After of the first refusal
    waited: list[float] = field(default_factory=list)  # seconds until the first request that was accepted

    async def run(self, crowd: Crowd, sent: list[bytes], seconds: float) -> None:
        end = time.perf_counter() + seconds
        tasks = []
        while time.perf_counter() < end:
            tasks.append(asyncio.create_task(self._one(crowd, sent[0])))
            await asyncio.sleep(0.25)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, crowd: Crowd, sent: bytes) -> None:
        first = await crowd.one(sent, PATIENT_S)
        if first.status != 503:
            return
        at, accepted = time.perf_counter(), False
        try:
            while not accepted:
                await asyncio.sleep(PROBE_EVERY_S)
                at = time.perf_counter()
                accepted = (await crowd.one(sent, PATIENT_S)).status == 200
        except asyncio.CancelledError:  # the phase ends; a refusal would have come by now
            accepted = time.perf_counter() - at > ACCEPTED_S
        if accepted:
            self.told.append(first.retry_after or 0.0)
            self.waited.append(at - first.at)


async def recovery(port: int, sent: list[bytes], limit: float, within: float = 30) -> float:
    """Return the seconds until three requests in a row are answered within `limit` seconds each."""
    crowd, start, good = Crowd(port), time.perf_counter(), 0
    first = 0.0
    while time.perf_counter() - start < within:
        outcome = await crowd.one(sent[0], PATIENT_S)
        good = good + 1 if outcome.status == 200 and outcome.seconds <= limit else 0
        first = outcome.at - start if good == 1 else first
        if good == 3:
            crowd.close()
            return first
        await asyncio.sleep(PROBE_EVERY_S)
    return float("inf")


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")
