"""A server process on a free loopback port, started as users start it and stopped at the end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import psutil

START_WITHIN = 180.0  # seconds
STOP_WITHIN = 30.0


@dataclass(frozen=True)
class Server:
    """The URL of a server, and its process (None: not found)."""

    url: str
    process: psutil.Process | None

    @property
    def rss_mib(self) -> float | None:
        return None if self.process is None else self.process.memory_info().rss / 2**20

    @property
    def cpu_seconds(self) -> float:
        if self.process is None:
            return 0.0
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def running_server(
    model: str,
    *,
    flags: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> Iterator[Server]:
    """Start a server and wait until it is ready.

    `model` is an ID or ID=DIRECTORY; `flags` extend the command line and `environment` the inherited variables.
    The server's log goes to `log`, by default to this process's output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sie_server", "serve", "--port", str(port), "--model", model]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", *flags],
        env={**os.environ, **(environment or {})},
        stdout=log,
        stderr=log,
    )
    try:
        wait_ready(url, process)
        yield Server(url, psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(url: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when the server's models are loaded.

    Raises:
        RuntimeError: the server ended, or took too long.
    """
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server stopped with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass  # not listening yet, or 503 while models are loading
        time.sleep(0.1)
    raise RuntimeError(f"{url} was not ready within {START_WITHIN:.0f} s")


def server_at(url: str, port: int) -> Server:
    """Return a server that is already running; its process is found by its port."""
    wait_ready(url)
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return Server(url, None)
    pids = [s.pid for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr.port == port and s.pid]
    return Server(url, psutil.Process(pids[0]) if pids else None)
