"""An attack: bytes that one or several callers send, and the report of the answers."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from support.hostile import contract, wire
from support.hostile.scale import ALLOWED_S, HOLD_S


@dataclass
class Report:
    """The observations of an attack's callers. Threads of the attack share it."""

    port: int
    end: float  # the attack holds until then
    given_up: float
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    held: int = 0  # bytes that the server may be holding at most, all callers together
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def hold(self, size: int) -> None:
        """Note the bytes that are sent at once."""
        with self.lock:
            self.held = max(self.held, size)

    def note(self, answer: wire.Answer | None, path: str = "") -> None:
        with self.lock:
            self.answers[str(answer.status) if answer else "closed"] += 1
            fault = answer and contract.fault_of(answer.status, answer.headers, answer.body, path)
            if fault:
                self.faults.append(fault)

    def pause(self, seconds: float) -> None:
        """Let time pass within the attack."""
        time.sleep(max(0.0, min(seconds, self.end - time.monotonic())))

    def close(self, connections: list[socket.socket]) -> None:
        """Note what the server has answered on connections that wait, if anything, and close them."""
        for connection in connections:
            with connection, contextlib.suppress(OSError):
                if wire.ready(connection, select.POLLIN, 0):
                    self.note(wire.read_answer(connection, 5))

    def send(self, request: bytes | Iterable[bytes], path: str = "") -> None:
        """Send a request and note the answer."""
        try:
            self.note(wire.exchange(self.port, request, max(1.0, self.given_up - time.monotonic())), path)
        except wire.Stalled as error:
            with self.lock:
                self.faults.append(f"stalled: {error}")


@dataclass(frozen=True)
class Attack:
    """A named attack. With `refusing`, the server may answer the probe's score request with 503 QUEUE_FULL.

    `quick` attacks are those of the short form: one of each kind.
    """

    name: str
    act: Callable[[Report], None]
    refusing: bool = False
    quick: bool = False
    only: tuple[str, ...] = ()  # the answers that the attack may get; empty: any that follows the contract

    def run(self, port: int) -> Report:
        """Attack the server on `port` for at least `HOLD_S` seconds."""
        now = time.monotonic()
        report = Report(port, now + HOLD_S, now + ALLOWED_S)
        self.act(report)
        return report


def repeated(
    make: Callable[[], Sequence[bytes]], path: str = "", callers: int = 1
) -> Callable[[Report], None]:
    """Return an attack that makes requests and sends them again and again, each of `callers` one at a time."""

    def act(report: Report) -> None:
        requests = make()
        report.hold(callers * max(map(len, requests)))

        def caller(number: int) -> None:
            sent = number
            while sent == number or not report.over or sent < number + len(requests):
                report.send(requests[sent % len(requests)], path)
                sent += 1

        together(callers, caller)

    return act


def together(callers: int, act: Callable[[int], None]) -> None:
    """Run `act` with the numbers of the callers in as many threads, and raise the first error."""
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(act, range(callers)))
