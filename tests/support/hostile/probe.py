"""A process that observes a server during attacks: small requests every 100 ms, and the server's resident memory.

It is a process of its own, so that an attack's Python code does not delay it. `Probe` starts it and reads its samples;
times are `time.monotonic()`, which all processes of a machine share.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EVERY_S, GIVE_UP_S = 0.1, 30.0
WRITING = threading.Lock()
MODEL = "sie/mini-en"
BODY = json.dumps(
    {"query": {"text": "stars"}, "items": [{"text": "Stars burn."}, {"text": "Rain."}]}
).encode()
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
HEALTH, SCORE = ("GET", "/healthz"), ("POST", f"/v1/score/{MODEL}")
KINDS = {
    "health, new connection": (HEALTH, False),
    "health, kept connection": (HEALTH, True),
    "score, new connection": (SCORE, False),
    "score, kept connection": (SCORE, True),
}


@dataclass(frozen=True)
class Sample:
    """A small request, or (kind `memory`) the resident bytes of the server in `value`."""

    kind: str
    at: float
    value: float  # seconds until the answer
    status: int = 0  # 0: no answer
    code: str = ""


class Probe:
    """Samples of one server."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self._log, self._process = log.open(encoding="utf-8"), process
        self._read: list[Sample] = []
        self._partial = ""  # a line that the probe is still writing

    def samples(self) -> list[Sample]:
        *lines, self._partial = (self._partial + self._log.read()).split("\n")
        self._read += [Sample(**json.loads(line)) for line in lines]
        return self._read

    def samples_of(self, start: float, end: float) -> list[Sample]:
        """Return the requests that were under way in a span of time, and the memory in it."""
        return [
            s
            for s in self.samples()
            if s.at <= end and (s.at if s.kind == "memory" else s.at + s.value) >= start
        ]

    def caught_up(self, moment: float) -> bool:
        """Whether requests of every kind that began after `moment` have ended."""
        assert self._process.poll() is None, "the probe has ended"
        return {sample.kind for sample in self.samples() if sample.at > moment} >= {*KINDS, "memory"}

    def memory(self, seconds: float = 0.5) -> float:
        """Return the median resident bytes of the last moments."""
        now = time.monotonic()
        return statistics.median(
            s.value for s in self.samples() if s.kind == "memory" and s.at > now - seconds
        )


@contextmanager
def probing(port: int, pid: int, log: Path) -> Iterator[Probe]:
    """Observe a server until the end of the block."""
    with log.open("wb") as out:
        command = [sys.executable, __file__, str(port), str(pid)]
        process = subprocess.Popen(command, stdout=out, stdin=subprocess.PIPE)
    try:
        yield Probe(log, process)
    finally:
        process.kill()
        process.wait(30)


def main(port: int, pid: int) -> None:
    """Write samples until standard input is closed."""
    for kind, (request, kept) in KINDS.items():
        threading.Thread(target=observe, args=(kind, port, request, kept), daemon=True).start()
    threading.Thread(target=watch_memory, args=(pid,), daemon=True).start()
    sys.stdin.read()


def write(**sample: Any) -> None:
    with WRITING:
        sys.stdout.write(json.dumps(sample) + "\n")
        sys.stdout.flush()


def observe(kind: str, port: int, request: tuple[str, str], kept: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    while True:
        at = time.monotonic()
        status, code = ask(connection, request)
        write(kind=kind, at=at, value=time.monotonic() - at, status=status, code=code)
        if not kept or not status:
            connection.close()
        time.sleep(max(0.0, at + EVERY_S - time.monotonic()))


def ask(connection: http.client.HTTPConnection, request: tuple[str, str]) -> tuple[int, str]:
    """Return status and error code. A kept connection that the server has closed is opened again once."""
    for _ in range(2):
        was_open = connection.sock is not None
        try:
            method, path = request
            connection.request(method, path, BODY if method == "POST" else None, HEADERS)
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("X-SIE-Error-Code") or ""
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if not was_open or isinstance(error, TimeoutError):
                return 0, type(error).__name__
    return 0, "closed"


def watch_memory(pid: int) -> None:
    process = psutil.Process(pid)
    while True:
        at = time.monotonic()
        try:
            write(kind="memory", at=at, value=process.memory_info().rss)
        except psutil.NoSuchProcess:
            return
        time.sleep(EVERY_S / 2)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
