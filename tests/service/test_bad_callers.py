"""Three badly behaved connections at once do not affect the answers of twenty ordinary clients."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from sie_sdk import SIEClient
from support.checkpoints import cross_encoders
from support.servers.processes import Server
from support.waiting import eventually

MODEL = "toy/bert"
CLIENTS, ROUNDS = 20, 10
WAIT_S = 30  # generous: a client that is blocked by any of the three would wait until its own timeout
QUERY = "rain falls tomorrow over the harbour"


@dataclass
class Misdeeds:
    """Progress of the three misbehaving callers."""

    hung_up: int = 0
    stalled: int = 0
    bytes_read: int = 0
    enough: threading.Event = field(default_factory=threading.Event)


def request(server: Server, body: bytes, length: int | None = None) -> socket.socket:
    """Send a score request with a small receive buffer, and return its connection."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.port))
    head = f"POST /v1/score/{MODEL} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


def large(texts: int, words: int, *, answer: bool = False) -> bytes:
    """Return a body that takes a while to score; with `answer`, the response contains megabytes of texts."""
    items = [{"text": f"{i} " + "rain " * words} for i in range(texts)]
    options = {"return_documents": True} if answer else {}
    return json.dumps({"query": {"text": QUERY}, "items": items, "options": options}).encode()


def hang_up(server: Server, deeds: Misdeeds) -> None:
    """Repeatedly disconnect while the answer is being computed."""
    body = large(1000, 60)
    while not deeds.enough.is_set():
        with request(server, body):
            deeds.enough.wait(0.1)
        deeds.hung_up += 1


def stall(server: Server, deeds: Misdeeds) -> None:
    """Open ever more connections that send half a body and then wait."""
    body, open_ones = large(50, 20), []
    while not deeds.enough.is_set():
        open_ones.append(request(server, body[: len(body) // 2], len(body)))
        deeds.stalled += 1
        deeds.enough.wait(0.1)
    for connection in open_ones:
        connection.close()


def read_slowly(server: Server, deeds: Misdeeds) -> None:
    """Read a large answer byte by byte, and the rest of it at the end; it must be complete."""
    with request(server, large(500, 2000, answer=True)) as connection:
        answer = b""
        while not deeds.enough.is_set():
            answer += connection.recv(1)
            deeds.bytes_read = len(answer)
            time.sleep(0.001)
        while chunk := connection.recv(2**16):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and len(body) > 4_000_000
    assert len(json.loads(body)["scores"]) == 500


BAD: tuple[Callable[[Server, Misdeeds], None], ...] = (hang_up, stall, read_slowly)


@contextmanager
def misbehaving(server: Server) -> Iterator[Misdeeds]:
    """Run all three until the end of the block, and raise their errors there."""
    deeds = Misdeeds()
    with ThreadPoolExecutor(len(BAD)) as pool:
        threads = [pool.submit(bad, server, deeds) for bad in BAD]
        try:
            assert eventually(lambda: min(deeds.hung_up, deeds.stalled, deeds.bytes_read) > 0)
            yield deeds
        finally:
            deeds.enough.set()
    for thread in threads:
        thread.result()


class Clients:
    """Twenty Python clients, each with a request whose answer is known."""

    def __init__(self, server: Server) -> None:
        self.server = server
        rng = random.Random(5)
        self.texts = [[cross_encoders.random_text(rng, 12) for _ in range(5)] for _ in range(CLIENTS)]
        with SIEClient(server.base_url) as client:
            self.expected = [self.ask(client, number) for number in range(CLIENTS)]

    def ask(self, client: SIEClient, number: int) -> dict[str, float]:
        entries = client.score(MODEL, {"text": QUERY}, [{"text": text} for text in self.texts[number]])[
            "scores"
        ]
        return {str(entry["item_id"]): entry["score"] for entry in entries}

    def rounds(self, number: int) -> list[float]:
        """Return the seconds of each request; every answer must be correct."""
        seconds = []
        with SIEClient(self.server.base_url, timeout=WAIT_S) as client:
            for _ in range(ROUNDS):
                started = time.monotonic()
                found = self.ask(client, number)
                seconds.append(time.monotonic() - started)
                assert list(found) == list(self.expected[number])
                assert found == pytest.approx(self.expected[number], abs=1e-6)
        return seconds

    def all_at_once(self) -> list[float]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return sorted(s for seconds in pool.map(self.rounds, range(CLIENTS)) for s in seconds)


def test_three_bad_callers_do_not_affect_twenty_clients(server: Server) -> None:
    clients, cancelled = Clients(server), server.metric("sie_cancelled_total")
    quiet = clients.all_at_once()
    with misbehaving(server) as deeds:
        loud = clients.all_at_once()
    for name, seconds in (("alone", quiet), ("among bad ones", loud)):
        p50, p95 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.95))
        print(
            f"{name}: p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms, longest {seconds[-1] * 1000:.0f} ms"
        )
    print(f"hung up {deeds.hung_up}, stalled {deeds.stalled}, read {deeds.bytes_read} bytes one by one")
    assert len(loud) == CLIENTS * ROUNDS and loud[-1] < WAIT_S
    assert deeds.hung_up >= 3 and deeds.stalled >= 3 and deeds.bytes_read > 100
    # every stalled request is cancelled; a request that disconnected may already have been answered
    gone = cancelled + deeds.stalled + deeds.hung_up / 2
    assert eventually(lambda: server.metric("sie_cancelled_total") >= gone)
    assert eventually(lambda: server.metric("sie_queue_tokens") == 0)
