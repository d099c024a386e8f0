"""Clients that send requests for a limited time, each its next one as soon as the last one is answered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from sie_server.loadtest.errors import Failure
from sie_server.loadtest.probe import Endpoint
from sie_server.loadtest.texts import Texts

IN_A_ROW = 20  # failures of all clients without one success, after which an endpoint counts as gone
PAUSE = 0.1  # seconds after a failure without Retry-After
MARGIN = 2.0  # seconds after the time limit of the last request, until connections are closed


Source = Callable[[int], Iterator[tuple[str, list[str]]]]  # number of a client → queries with documents


@dataclass(frozen=True)
class Plan:
    """The size of one phase. It ends after `seconds`, or earlier after `requests`."""

    clients: int
    documents: int
    seconds: float
    requests: int
    seed: int = 0
    words: int | None = None  # of every document; None: lognormal lengths


@dataclass
class Outcome:
    """The results of one phase. Latencies and the time of the last answer are in seconds."""

    plan: Plan
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)  # of the first failure of each kind
    wrong: int = 0  # failures that no load explains
    gone: str = ""  # the last failure, if the endpoint stopped answering
    last: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        """Scored documents per second until the last answer."""
        return len(self.latencies) * self.plan.documents / self.last if self.last else 0.0

    @property
    def problem(self) -> str:
        """The reason why this phase is no measurement of a working endpoint; "" if it is one."""
        if self.gone:
            return f"the endpoint stopped answering; the last failure: {self.gone}"
        if self.wrong:
            return f"{self.wrong} requests failed for other reasons than load; the kinds are listed above"
        return "" if self.latencies else "no request was answered"


class _Phase:
    """The state that the clients of a phase share."""

    def __init__(self, endpoint: Endpoint, plan: Plan, source: Source) -> None:
        self.endpoint, self.outcome, self._source = endpoint, Outcome(plan), source
        self.connections = [endpoint.connect() for _ in range(plan.clients)]
        self._lock = threading.Lock()
        self._left, self._row = plan.requests, 0
        self.over = threading.Event()
        self._start = time.perf_counter()
        self._end = self._start + plan.seconds

    def may_send(self) -> bool:
        """Take one of the requests that are left."""
        with self._lock:
            allowed = self._left > 0 and time.perf_counter() < self._end and not self.over.is_set()
            self._left -= allowed
            return allowed

    def answered(self, seconds: float) -> None:
        with self._lock:
            self._row = 0
            self.outcome.latencies.append(seconds)
            self.outcome.last = time.perf_counter() - self._start

    def failed(self, failure: Failure) -> None:
        with self._lock:
            found, self._row = self.outcome, self._row + 1
            found.failures[failure.kind] += 1
            found.details.setdefault(failure.kind, str(failure))
            found.wrong += not failure.refused
            if self._row >= IN_A_ROW and not failure.refused and not self.over.is_set():
                found.gone = str(failure)
                self.over.set()

    def client(self, number: int) -> None:
        """Send requests until the phase ends."""
        connection, texts = self.connections[number], self._source(number)
        while self.may_send():
            query, documents = next(texts)
            start = time.perf_counter()
            try:
                self.endpoint.score(connection, query, documents)
            except Failure as failure:
                self.failed(failure)
                self.over.wait(max(failure.retry_after, PAUSE))
            else:
                self.answered(time.perf_counter() - start)


def _random(plan: Plan, number: int) -> Iterator[tuple[str, list[str]]]:
    return iter(Texts(plan.documents, plan.seed, number, plan.words))


def run(endpoint: Endpoint, plan: Plan, source: Source | None = None) -> Outcome:
    """Run one phase: it sends for `plan.seconds` at most and then waits for the last answers.

    `source` returns the requests of a client, by default random words. The phase ends early if the endpoint stops
    answering, and at the latest with the time limit of the last request.
    """
    phase = _Phase(endpoint, plan, source or partial(_random, plan))
    threads = [
        threading.Thread(target=phase.client, args=(number,), daemon=True) for number in range(plan.clients)
    ]
    limit = time.monotonic() + plan.seconds + endpoint.timeout_s + MARGIN
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
    finally:  # also after Ctrl-C
        phase.over.set()
        for connection in phase.connections:
            connection.close()
    for thread in threads:
        thread.join(MARGIN)  # at once, unless the name of the host is still looked up
    return phase.outcome
