"""Clients that call in a loop while faults happen: those of sie_sdk, and plain ones that repeat nothing."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from bench.faults.requests import MODEL, QUERIES, Expected, bodies, by_item, items, query

from sie_sdk import Item, SIEClient, SIEError

PAUSE_S = 0.1  # of a client between two calls, so that the machine is not the limit
DEADLINE_S = 300.0
PLAIN_TIMEOUT_S = 150.0  # as long as the SDK waits for one answer


@dataclass
class Tally:
    """The calls of one kind of client. Several threads count."""

    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by kind
    wrong: int = 0  # scores of no version, or of a version that had been replaced before the call
    slowest_s: float = 0.0
    samples: list[str] = field(default_factory=list)  # of failures
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, seconds: float, *, failed: str = "", detail: str = "", wrong: bool = False) -> None:
        """Count a call."""
        with self._lock:
            self.calls += 1
            self.wrong += wrong
            self.slowest_s = max(self.slowest_s, seconds)
            if failed:
                self.failed[failed] += 1
            if (failed or wrong) and len(self.samples) < 20:
                self.samples.append(f"{failed or 'wrong'}: {detail}"[:300])

    def figures(self) -> dict[str, Any]:
        """Return the counts for a report."""
        return {
            "calls": self.calls,
            "failed": self.failed.total(),
            "kinds": dict(self.failed.most_common()),
            "wrong": self.wrong,
            "slowest_s": round(self.slowest_s, 2),
            "samples": self.samples,
        }


class Versions:
    """The versions of the model that an answer may come from: during a swap two, after it the new one."""

    def __init__(self, expected: Expected, now: str) -> None:
        self._expected, self._allowed = expected, frozenset({now})

    def allow(self, *versions: str) -> None:
        """Set the versions. A call that has begun before may still be answered by an earlier one."""
        self._allowed = frozenset(versions)

    def now(self) -> frozenset[str]:
        return self._allowed

    def problem(self, number: int, scores: list[float], began: frozenset[str]) -> str:
        """Return why scores are wrong, equal to the last bit being right; empty if they are not wrong."""
        found = {name for name, lists in self._expected.items() if lists[number] == scores}
        if not found:
            return f"query {number}: scores of no version, {scores[:3]}"
        if not found & (began | self._allowed):
            return f"query {number}: scores of {min(found)}, which was replaced before the call"
        return ""


class Crowd:
    """Both kinds of clients, in threads."""

    def __init__(self, url: str, versions: Versions, clients: int, plain: int) -> None:
        self.url, self.versions = url, versions
        self.sdk, self.plain = Tally(), Tally()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=target, args=(number,), daemon=True)
            for target, count in ((self._ask, clients), (self._ask_plain, plain))
            for number in range(count)
        ]

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the end of the block, and then until the last call has ended."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join(DEADLINE_S + 10)

    def _loop(self, seed: int, call: Callable[[int], None]) -> None:
        rng = random.Random(seed)
        while not self._stopped.wait(PAUSE_S * (0.5 + rng.random())):
            call(rng.randrange(QUERIES))

    def _ask(self, seed: int) -> None:
        sent = items()
        with SIEClient(self.url, deadline=DEADLINE_S) as client:

            def call(number: int) -> None:
                began, start = self.versions.now(), time.monotonic()
                try:
                    entries = client.score(MODEL, Item(text=query(number)), sent)["scores"]
                except SIEError as error:
                    self.sdk.add(time.monotonic() - start, failed=type(error).__name__, detail=str(error))
                    return
                problem = self.versions.problem(number, by_item(entries), began)
                self.sdk.add(time.monotonic() - start, wrong=bool(problem), detail=problem)

            self._loop(seed, call)

    def _ask_plain(self, seed: int) -> None:
        sent = bodies()
        media = {"content-type": "application/json", "accept": "application/json"}
        with httpx.Client(timeout=PLAIN_TIMEOUT_S, headers=media) as client:

            def call(number: int) -> None:
                began, start = self.versions.now(), time.monotonic()
                try:
                    reply = client.post(f"{self.url}/v1/score/{MODEL}", content=sent[number])
                except httpx.TransportError as error:
                    self.plain.add(time.monotonic() - start, failed=kind_of(error), detail=repr(error))
                    return
                if reply.status_code != 200:
                    self.plain.add(time.monotonic() - start, failed=kind_of(reply), detail=reply.text)
                    return
                problem = self.versions.problem(number, by_item(reply.json()["scores"]), began)
                self.plain.add(time.monotonic() - start, wrong=bool(problem), detail=problem)

            self._loop(-1 - seed, call)


def kind_of(outcome: httpx.Response | httpx.TransportError) -> str:
    """Return the kind of a failure: the code of our error, the status of another program, or the exception."""
    if isinstance(outcome, httpx.TransportError):
        return type(outcome).__name__
    if "x-sie-server-version" not in outcome.headers:
        return f"{outcome.status_code} of the proxy"
    return f"{outcome.status_code} {outcome.headers.get('x-sie-error-code', '')}".strip()
